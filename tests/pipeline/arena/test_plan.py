"""Which trainings a preset has: equal tries, the validation score decides, then seeds; a mistake in it is one line."""

import os
from pathlib import Path
from threading import Thread

import pytest

from pipeline.arena import plan, preset, record, tuning
from pipeline.arena.execution import check
from pipeline.methods import planning
from tests import workspace
from tests.kit import refused
from tests.pipeline.arena import small
from tests.pipeline.arena.small import cell, recorded, training


def simulate(chosen, score):
    """Answer what a cell asks for until it is complete; return the records, in the order that it asked for them."""
    records = {}
    while trainings := tuning.missing(chosen, records):
        records |= {one.key: recorded(one, score(one)) for one in trainings}
    return records


def last_step(chosen, records):
    return list(tuning.steps(chosen, records))[-1]


def key(title="glue: LoRA r=1", seed=0, **setting):
    return training(title, seed, **setting).key


WIDER = {"tuning": {"extra_rates": 3}}
SEEDS = {"tuning": {"seeds": 2}, "seeds": [0, 1, 2]}
LORA = "glue: LoRA r=1"
WIDER_SEEDS = {"tuning": {"seeds": 2, "extra_rates": 3}, "seeds": [0, 1, 2]}
ALONE = {"methods": {"alone": {"adapter": "lsr", "params": small.LSR, "trained": False}}}
HEADS = {"tuning": {"head_rates": [0.5, 1.0, 2.0]}}
# A preset, a cell, its validation score by factor of the rate, of the head's rate, and seed; what is asked for so.
ASKED = [
    ({}, LORA, lambda r, h, s: -abs(r - 0.5), [(0.5, 1, 0), (1, 1, 0), (0.5, 1, 1)]),
    # Where the best is at an end, the next one is tried, as often as is allowed.
    (WIDER, LORA, lambda r, h, s: r, [(r, 1, 0) for r in (0.5, 1, 2, 4, 8)] + [(8, 1, 1)]),
    (WIDER, LORA, lambda r, h, s: -r, [(r, 1, 0) for r in (0.5, 1, 0.25, 0.125, 0.0625)] + [(0.0625, 1, 1)]),
    # A best in the middle ends the tries.
    (WIDER, LORA, lambda r, h, s: -abs(r - 2), [(r, 1, 0) for r in (0.5, 1, 2, 4)] + [(2, 1, 1)]),
    # What diverged is not tried again, lower rates are.
    (WIDER, LORA, lambda r, h, s: None, [(r, 1, 0) for r in (0.5, 1, 0.25, 0.125, 0.0625)]),
    # The head's rates are tried at the best rate of the adapter; a head that trains alone has the same tries as others.
    (HEADS, LORA, lambda r, h, s: r - abs(h - 2), [(0.5, 1, 0), (1, 1, 0), (1, 0.5, 0), (1, 2, 0), (1, 2, 1)]),
    (HEADS, "glue: head", lambda r, h, s: h, [(None, 0.5, 0), (None, 1, 0), (None, 1, 1)]),
    # A rate that suits one seed alone is not chosen: the best mean must be of both seeds.
    (
        SEEDS,
        LORA,
        lambda r, h, s: None if (r, s) == (1, 1) else r,
        [(0.5, 1, 0), (1, 1, 0), (1, 1, 1), (0.5, 1, 1), (0.5, 1, 2)],
    ),
    # What further seeds say of the best try does not widen the rates once more.
    (
        WIDER_SEEDS,
        LORA,
        lambda r, h, s: -r if s else -abs(r - 2),
        [(r, 1, 0) for r in (0.5, 1, 2, 4)] + [(2, 1, 1), (1, 1, 1), (1, 1, 2)],
    ),
    (ALONE, "glue: alone", lambda r, h, s: 0.5, [(None, 1, 0), (None, 1, 1)]),  # what is not trained is not tuned
]


@pytest.mark.parametrize(("changes", "title", "score", "asked"), ASKED)
def test_the_tries_come_first_and_then_the_other_seeds_at_the_best(changes, title, score, asked, arena):
    small.use(**changes)
    chosen = cell(title)
    first = cell(title).first()

    def setting(one):
        return one.rate and one.rate / first.rate, one.head_rate / first.head_rate, one.seed

    records = simulate(chosen, lambda one: score(*setting(one)))
    assert [setting(one) for one in records.values()] == [pytest.approx(one) for one in asked]
    assert {setting(one)[:2] for one in last_step(chosen, records)} == {setting(list(records.values())[-1])[:2]}
    assert {one.key for trainings in tuning.steps(chosen, records) for one in trainings} == records.keys()


def test_numbers_of_epochs_are_tried_at_the_best_rate_and_then_rates_of_the_head(arena):
    small.use(tuning={"epochs": [0.5, 2.0], "head_rates": [2.0]})
    chosen = cell()
    first = chosen.first()

    def setting(one):
        return one.rate / first.rate, one.head_rate / first.head_rate, one.epochs, one.seed

    def score(one):
        rate, head_rate, epochs, _ = setting(one)
        return -abs(rate - 0.5) - abs(epochs - 4) + head_rate

    records = simulate(chosen, score)
    asked = [(0.5, 1, 2, 0), (1, 1, 2, 0), (0.5, 1, 1, 0), (0.5, 1, 4, 0), (0.5, 2, 4, 0), (0.5, 2, 4, 1)]
    assert [setting(one) for one in records.values()] == asked
    assert [one.epochs for one in last_step(chosen, records)] == [4, 4]


def test_tuned_trainings_without_scores_in_all_precisions_are_run_again(arena):
    records = simulate(cell(), lambda one: one.rate)
    small.use(quantized_seeds=[1])
    again = tuning.missing(cell(), records)
    assert [(one.seed, one.is_quantized, one.rate) for one in again] == [(1, True, cell().first().rate)]
    records |= {one.key: recorded(one, one.rate) for one in again}
    assert tuning.missing(cell(), records) == []
    assert cell("ratings: LoRA r=1").quantized_seeds == (1,)
    small.use(tasks={"comparisons": {}}, averages={"main": ["glue", "comparisons"]}, quantized_seeds=[1])
    assert [cell(f"{task}: LoRA r=1").quantized_seeds for task in ("glue", "ratings")] == [(1,), ()]
    small.use(methods={"mean": {"adapter": "head_only", "features": "mean"}}, baseline="mean", quantized_seeds=[1])
    assert cell("glue: mean").quantized_seeds == ()  # or what has nothing to round would be run again and again


def test_the_test_score_has_no_say(arena):
    records = simulate(cell(), lambda one: (one.rate, -one.rate))
    assert last_step(cell(), records)[0].rate == cell().first().rate


def test_a_key_stands_for_all_that_a_training_sees(arena):
    keys = [key()]
    for changes in (
        {"params": {"train.weight_decay": 0.5}},
        {"methods": {"LoRA r=1": {"adapter": "lora", "params": {"lora.r": 2, "lora.lora_alpha": 2}}}},
        {"sample_sizes": {"train": 40}},
        {"tasks": {"glue": {"sample_sizes": {"max_tokens": 20}}}},
        {"tasks": {"glue": {"params": {"train.warmup_ratio": 0.5}}}},
    ):
        small.use(**changes)
        keys.append(key())
    small.use()
    keys += [key("ratings: LoRA r=1"), key(head_multiplier=2.0), key(seed=1)]
    small.use(**ALONE)
    keys += [key("glue: alone"), key("glue: LSR shared r=2")]
    assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_whatever_the_method_is_called_and_other_methods_are(arena):
    before = key()
    small.use(params={"lsr.alpha": 3.0}, methods={"LoRA": small.SMALL["methods"]["LoRA r=1"]})
    assert key() == before == key("glue: LoRA")
    odd = {"adapter": "loha", "params": {"loha.type": "LOHA"}}
    small.use(methods={"odd": odd}, params={"loha.learning_rate": 0.01})
    assert cell("glue: odd").first().rate == 0.01
    assert key() == before


def test_what_a_killed_run_left_of_a_line_is_passed_over_and_cut_off(arena, tmp_path):
    path = tmp_path / "a.jsonl"
    record.append(path, recorded(training(), 0.5))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert record.read(tmp_path).keys() == {key()}
    record.append(path, recorded(training(seed=1), 0.5))
    assert record.read(tmp_path).keys() == {key(), key(seed=1)}


def test_two_commands_at_once_both_append_their_record(arena, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    other = Thread(target=record.append, args=(path, recorded(training(seed=1), 0.5)))
    truncate = os.truncate

    def truncate_meanwhile(*given):
        monkeypatch.setattr(os, "truncate", truncate)
        other.start()
        other.join(0.5)  # it waits for the first one
        truncate(*given)

    monkeypatch.setattr(os, "truncate", truncate_meanwhile)
    record.append(path, recorded(training(), 0.5))
    other.join()
    assert record.read(tmp_path).keys() == {key(), key(seed=1)}


NO_RECORDS = [
    ("nothing", "Invalid JSON"),
    ('{"key": 3}', "Input should be"),
    ('{"rounded": {}}', "it is of an earlier ver"),
]


@pytest.mark.parametrize(("line", "reason"), NO_RECORDS)
def test_a_line_that_is_no_record_is_named(line, reason, arena, tmp_path):
    record.append(tmp_path / "a.jsonl", recorded(training(), 0.5))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(f"{line}\n")
    said = refused(record.read, tmp_path, says="a.jsonl: line 2 is not a record of the arena: " + reason)
    assert said.endswith("; delete the line")


COMMITTED = workspace.read_yaml(workspace.ROOT / preset.PATH)


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_presets_hold_all_trainings_of_the_committed_records(name, monkeypatch):
    """Where this fails, what a key hashes has changed: give the records their new keys in the same commit."""
    monkeypatch.chdir(workspace.ROOT)
    chosen = preset.load(name)
    assert {"LoRA r=1", "one LoRA r=8, 4 passes", "tenants ignored"} & chosen.methods.keys()
    assert len(chosen.seeds) >= 2
    records = record.read(record.FOLDER / name)
    planned = set()
    for its in plan.cells(name, chosen):
        assert its.first().view.seed == 0
        planning.build_config(its.first().view.section, 0, ["query"], ["classifier"])
        is_begun = (its.task, its.method) in {(one.task, one.method) for one in records.values()}
        assert not is_begun or tuning.missing(its, records) == [], its.title
        planned |= {training.key for trainings in tuning.steps(its, records) for training in trainings}
    left = {one.method for key, one in records.items() if key not in planned}
    assert not left
    assert {one.method for one in records.values()} <= chosen.methods.keys()


ON_MEAN = {"method": "LoRA r=1", "expected": "better", "versus": "head", "on": "mean"}
FORMER = {"method": "LoRA r=1", "expected": "better", "against": "head", "on": "glue"}
ALL = ["glue", "ratings", "comparisons"]
BROKEN = [
    ({"baseline": "LoRA r=3"}, "small: baseline: no 'LoRA r=3' here; did you mean LoRA r=1?"),
    ({"tuning": {"rates": [1.0, 1.0]}}, "small.tuning.rates: "),
    ({"quantized_seeds": [1, 7]}, "small: quantized_seeds: no '7' here"),
    ({"params": {"seed": 3}}, "params: seed is set by the arena itself"),
    (
        {"params": {"tenants.shared_adapter": "models/shared"}},
        "params: tenants.shared_adapter is set by the arena itself",
    ),
    ({"averages": {"main": ["glue", "rating"]}}, "averages: main: no 'rating' here; did you mean ratings?"),
    ({"averages": {"glue": ["glue", "ratings"]}}, "averages: glue is the name of a task"),
    ({"tasks": {"comparisons": {}}, "averages": {"main": ALL}}, "ratings and comparisons share their texts; keep"),
    ({"hypotheses": [ON_MEAN]}, "hypotheses: 1: on: no 'mean' here"),
    # Names of earlier versions.
    ({"reads": {"train": 40}}, "small.reads: this key is now called sample_sizes"),
    ({"tasks": {"glue": {"reads": {"train": 40}}}}, "small.tasks.glue.reads: this key is now called sample_sizes"),
    (
        {"tasks": {"glue": {"sample_sizes": {"longest": 9}}}},
        "small.tasks.glue.sample_sizes.longest: this key is now called max_tokens",
    ),
    ({"sample_sizes": {"new_tokens": 9}}, "small.sample_sizes.new_tokens: this key is now called max_new_tokens"),
    ({"tuning": {"wider": 2}}, "small.tuning.wider: this key is now called extra_rates"),
    ({"rounded": [1]}, "small.rounded: this key is now called quantized_seeds"),
    ({"hypotheses": [FORMER]}, "small.hypotheses.0.against: this key is now called versus"),
]


@pytest.mark.parametrize(("changes", "says"), BROKEN)
def test_a_broken_preset_is_refused_in_a_line(changes, says, arena):
    small.use(**changes)
    assert refused(preset.load, "small", says=says).startswith(str(preset.PATH))


def test_keys_of_pinned_files_are_known_without_them_and_other_files_are_refused(arena, tmp_path):
    """Private data are not in the repository, their records are."""
    small.use(files={"ratings.csv": "0" * 64})
    known = cell("ratings: head")
    refused(check, [known], says="ratings.csv: not the file of the preset: its SHA-256 must be 0000")
    Path("ratings.csv").rename(tmp_path / "ratings.csv")
    assert cell("ratings: head").first().key == known.first().key
    (tmp_path / "ratings.csv").rename("ratings.csv")


def odd(adapter, **params):
    return {"methods": {"odd": {"adapter": adapter, "params": params}}}


MISFITS = [
    ({"tasks": {"glu": {}}}, "no entry 'glu'; did you mean glue?"),
    (odd("lora", **{"lora.target_modules": ["valeu"]}), "pipeline/arena.yaml: small.methods.odd: lora: "),
    (odd("loha", **{"loha.r": 2}), "small.methods.odd.loha: no such key; the section of a method has a type"),
    ({"params": {"tokenize.max_length": 64}}, "pipeline/arena.yaml: small.tasks.glue: tokenize.max_length"),
    ({"sample_sizes": {"max_tokens": 2}}, "no text of at most 2 tokens"),
]


@pytest.mark.parametrize(("changes", "says"), MISFITS)
def test_what_does_not_fit_is_said_before_anything_runs(changes, says, arena):
    small.use(**changes)
    refused(lambda: check(plan.cells("small", preset.load("small"), ["glu"])), says=says)
