"""Which trainings there are: equal tries, the validation score decides, and then the seeds."""

import pytest

from pipeline.arena import plan, preset, tuning
from pipeline.arena.plan import Setting
from tests.pipeline.arena import small
from tests.pipeline.arena.made_up import recorded


def entry(title="glue: LoRA r=1"):
    [chosen] = plan.entries("small", preset.load("small"), [title])
    return chosen


def simulate(chosen, score):
    """Answer what an entry asks for until it is complete; return the sizes of what it asked for, and the records."""
    records, sizes = {}, []
    while trainings := tuning.missing(chosen, records):
        sizes.append(len(trainings))
        for one in trainings:
            records[one.key] = recorded(one, score(one))
    return sizes, records


def last_step(chosen, records):
    return list(tuning.steps(chosen, records))[-1]


def base_rate():
    return entry().first().rate


def key(title="glue: LoRA r=1", seed=0, **setting):
    return entry(title).training(Setting(**setting), seed).key


def test_the_tries_come_first_and_then_the_other_seeds_at_the_best(arena):
    sizes, records = simulate(entry(), lambda one: -abs(one.rate - base_rate() / 2))
    assert sizes == [2, 1]
    trainings = last_step(entry(), records)
    assert [one.seed for one in trainings] == [0, 1]
    assert {one.rate for one in trainings} == {base_rate() / 2}
    assert sum(sizes) == tuning.most_left(entry(), {})
    assert tuning.most_left(entry(), {one.key: records[one.key] for one in trainings[:1]}) == 2
    assert tuning.most_left(entry(), records) == 0


@pytest.mark.parametrize(
    ("score", "factors"),
    [
        (lambda one: one.rate, [0.5, 1, 2, 4, 8, 8]),
        (lambda one: -one.rate, [0.5, 1, 0.25, 0.125, 0.0625, 0.0625]),
        (lambda one: -abs(one.rate - base_rate() * 2), [0.5, 1, 2, 4, 2]),  # a best in the middle ends the tries
        (lambda one: None, [0.5, 1, 0.25, 0.125, 0.0625]),  # what diverged is not tried again, lower rates are
    ],
)
def test_where_the_best_is_at_an_end_the_next_one_is_tried_as_often_as_is_allowed(score, factors, arena):
    small.use(tuning={"wider": 3})
    rates = []
    _, records = simulate(entry(), lambda one: rates.append(one.rate) or score(one))
    assert [rate / base_rate() for rate in rates] == pytest.approx(factors)
    finished = any(one.status == "finished" for one in records.values())
    assert [one.rate for one in last_step(entry(), records)] == [rates[-1]] * (2 if finished else 1)


def test_rates_of_the_head_are_tried_at_the_best_rate_of_the_adapter(arena):
    small.use(tuning={"head_rates": [0.5, 1.0, 2.0]})
    sizes, records = simulate(entry(), lambda one: one.rate - abs(one.head_rate - 2 * entry().first().head_rate))
    assert sizes == [2, 2, 1]
    assert last_step(entry(), records)[0].head_rate == pytest.approx(2 * entry().first().head_rate)
    assert tuning.most_left(entry(), {}) == 2 + 2 + 1


def test_a_rate_that_suits_one_seed_alone_is_not_chosen(arena):
    """The best try is run with the second seed until the best mean is of both seeds."""
    small.use(tuning={"seeds": 2}, seeds=[0, 1, 2])
    high = base_rate()
    asked = []

    def score(one):
        asked.append((one.rate / high, one.seed))
        return None if (one.rate, one.seed) == (high, 1) else one.rate

    _, records = simulate(entry(), score)
    assert asked == [(0.5, 0), (1, 0), (1, 1), (0.5, 1), (0.5, 2)]
    assert {one.rate for one in last_step(entry(), records)} == {high / 2}


def test_the_steps_are_the_same_when_they_are_asked_for_again(arena):
    """What further seeds say of the best try does not widen the rates once more."""
    small.use(tuning={"seeds": 2, "wider": 3}, seeds=[0, 1, 2])
    _, records = simulate(entry(), lambda one: -abs(one.rate - 2 * base_rate()) if one.seed == 0 else -one.rate)
    assert {one.key for trainings in tuning.steps(entry(), records) for one in trainings} == records.keys()
    assert min(one.rate for one in records.values()) == base_rate() / 2


def test_what_is_not_trained_is_not_tuned_and_a_training_differs_by_it(arena):
    small.use(methods={"alone": {"adapter": "lsr", "params": small.LSR, "trained": False}})
    sizes, _ = simulate(entry("glue: alone"), lambda one: 0.5)
    assert sizes == [2] == [tuning.most_left(entry("glue: alone"), {})]
    assert entry("glue: alone").first().rate is None
    assert key("glue: alone") != key("glue: LSR shared r=2")


def test_tuned_trainings_without_scores_in_all_precisions_are_run_again(arena):
    _, records = simulate(entry(), lambda one: one.rate)
    small.use(rounded=[1])
    again = tuning.missing(entry(), records)
    assert [(one.seed, one.is_rounded, one.rate) for one in again] == [(1, True, base_rate())]
    records |= {one.key: recorded(one, one.rate) for one in again}
    assert tuning.missing(entry(), records) == []
    assert entry("ratings: LoRA r=1").rounded == (1,)
    small.use(tasks={"comparisons": {}}, averages={"main": ["glue", "comparisons"]}, rounded=[1])
    assert [entry(f"{task}: LoRA r=1").rounded for task in ("glue", "ratings")] == [(1,), ()]


def test_a_further_seed_of_the_best_try_is_scored_in_all_precisions_at_once(arena):
    small.use(rounded=[1], tuning={"seeds": 2})
    sizes, records = simulate(entry(), lambda one: one.rate)
    assert sum(sizes) == len(records) == 3
    assert [bool(records[one.key].rounded) for one in last_step(entry(), records)] == [False, True]


def test_the_test_score_has_no_say(arena):
    _, records = simulate(entry(), lambda one: (one.rate, -one.rate))
    assert last_step(entry(), records)[0].rate == base_rate()


def test_a_key_stands_for_all_that_a_training_sees(arena):
    keys = [key()]
    for changes in (
        {"params": {"train.weight_decay": 0.5}},
        {"methods": {"LoRA r=1": {"adapter": "lora", "params": {"lora.r": 2, "lora.lora_alpha": 2}}}},
        {"reads": {"train": 40}},
        {"tasks": {"glue": {"reads": {"longest": 20}}}},
        {"tasks": {"glue": {"params": {"train.warmup_share": 0.5}}}},
    ):
        small.use(**changes)
        keys.append(key())
    small.use()
    keys += [key("ratings: LoRA r=1"), key(head_factor=2.0), key(seed=1)]
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_whatever_the_method_is_called_and_other_methods_are(arena):
    before = key()
    small.use(params={"lsr.alpha": 3.0}, methods={"LoRA": small.SMALL["methods"]["LoRA r=1"]})
    assert key() == before == key("glue: LoRA")


def test_a_preset_makes_sections_that_other_methods_do_not_see(arena):
    before, odd = key(), {"adapter": "loha", "params": {"loha.type": "LOHA"}}
    small.use(methods={"odd": odd}, params={"loha.learning_rate": 0.01})
    assert entry("glue: odd").first().rate == 0.01
    assert key() == before
