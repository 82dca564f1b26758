"""Which trainings there are: equal tries, the validation score decides, and then the seeds."""

import pytest

from pipeline.arena import plan, preset
from tests.pipeline.arena import made_up, small
from tests.pipeline.arena.made_up import recorded


def run(title="glue: LoRA r=1"):
    [found] = plan.runs("small", preset.load("small"), [title])
    return found


def simulate(chosen, score):
    """Answer what a run asks for until it is complete; return the sizes of what it asked for, and the records."""
    found, sizes = {}, []
    while cells := plan.missing(chosen, found):
        sizes.append(len(cells))
        for cell in cells:
            found[cell.key] = recorded(cell, score(cell))
    return sizes, found


def base_rate():
    return run().cell(1.0, 1.0, 0).rate


def test_the_tries_come_first_and_then_the_other_seeds_at_the_best(arena):
    sizes, found = simulate(run(), lambda cell: -abs(cell.rate - base_rate() / 2))
    assert sizes == [2, 1]
    cells = plan.repeated(run(), found)
    assert [cell.seed for cell in cells] == [0, 1]
    assert {cell.rate for cell in cells} == {base_rate() / 2}


def test_where_the_best_is_at_an_end_the_next_one_is_tried_as_often_as_is_allowed(arena):
    small.write(tuning={"wider": 3})
    rates = []
    sizes, _ = simulate(run(), lambda cell: rates.append(cell.rate) or cell.rate)
    assert sizes == [2, 1, 1, 1, 1]
    assert [rate / base_rate() for rate in rates] == pytest.approx([0.5, 1, 2, 4, 8, 8])


def test_a_best_in_the_middle_ends_the_tries(arena):
    small.write(tuning={"wider": 3})
    sizes, _ = simulate(run(), lambda cell: -abs(cell.rate - base_rate() * 2))
    assert sizes == [2, 1, 1, 1]


def test_rates_of_the_head_are_tried_at_the_best_rate_of_the_adapter(arena):
    small.write(tuning={"head_rates": [0.5, 1.0, 2.0]})
    sizes, found = simulate(run(), lambda cell: cell.rate - abs(cell.head_rate - 2 * run().cell(1.0, 1.0, 0).head_rate))
    assert sizes == [2, 2, 1]
    assert plan.repeated(run(), found)[0].head_rate == pytest.approx(2 * run().cell(1.0, 1.0, 0).head_rate)
    assert plan.most(run()) == 2 + 2 + 1


def test_a_head_that_trains_alone_is_tuned_by_the_same_tries(arena):
    small.write(tuning={"head_rates": [0.5, 2.0]})
    sizes, found = simulate(run("glue: head"), lambda cell: cell.head_rate)
    assert sizes == [2, 1]
    assert len({one.head_rate for one in found.values()}) == 2
    assert {one.rate for one in found.values()} == {None}


def test_what_diverged_is_not_tried_again_and_lower_rates_are(arena):
    small.write(tuning={"wider": 2})
    rates = []
    sizes, found = simulate(run(), lambda cell: rates.append(cell.rate))
    assert sizes == [2, 1, 1]
    assert [rate / base_rate() for rate in rates] == pytest.approx([0.5, 1, 0.25, 0.125])
    assert plan.repeated(run(), found) == []


def test_the_test_score_has_no_say(arena):
    _, found = simulate(run(), lambda cell: (cell.rate, -cell.rate))
    assert plan.repeated(run(), found)[0].rate == base_rate()


def test_a_key_stands_for_all_that_a_training_sees(arena):
    keys = [run().cell(1.0, 1.0, 0).key]
    for changes in (
        {"params": {"train.weight_decay": 0.5}},
        {"methods": {"LoRA r=1": {"adapter": "lora", "params": {"lora.r": 2, "lora.lora_alpha": 2}}}},
        {"reads": {"train": 40}},
    ):
        small.write(**changes)
        keys.append(run().cell(1.0, 1.0, 0).key)
    keys += [run("ratings: LoRA r=1").cell(1.0, 1.0, 0).key, run().cell(1.0, 2.0, 0).key, run().cell(1.0, 1.0, 1).key]
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_whatever_the_method_is_called_and_other_methods_are(arena):
    key = run().cell(1.0, 1.0, 0).key
    small.write(params={"lsr.alpha": 3.0}, methods={"LoRA": small.SMALL["methods"]["LoRA r=1"]})
    assert run().cell(1.0, 1.0, 0).key == key == run("glue: LoRA").cell(1.0, 1.0, 0).key


def test_a_title_names_one_run_or_words_name_several(arena):
    chosen = preset.load("small")
    assert len(plan.runs("small", chosen)) == 6
    assert [found.title for found in plan.runs("small", chosen, ["LSR"])] == [
        "glue: LSR shared r=2",
        "ratings: LSR shared r=2",
    ]
    assert len(plan.runs("small", chosen, ["glue", "LoRA"])) == 1


def test_made_up_records_are_records(arena):
    assert made_up.recorded(run().cell(1.0, 1.0, 0), 0.5).status == "finished"
