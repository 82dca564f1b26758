"""Which trainings count: those at the setting that the plan tunes, and in the smallest precision that loses little."""

from pathlib import Path

import pytest
from scipy import stats

from pipeline.compare.rows import Cell, cells, estimate, smallest
from tests.pipeline.compare.records import prepare, preset, record, trainings, went


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def alone(**changes):
    return preset(["rte"], ["LoRA r=1"], **changes)


def one(records, **changes):
    tasks, left = cells("small", alone(**changes), records)
    ((cell,),) = (methods.values() for methods in tasks.values())
    return cell, left


def at(best, highest=0.9):
    """Say of a training that it validates best at one rate, where the test score is the worst."""

    def said(training):
        is_best = training.rate == pytest.approx(best)
        test = [{"accuracy": 0.2 if is_best else 1.0}] * 3
        return went(training, validation=[0.5, 0.5, highest if is_best else 0.6], test=test)

    return said


def rates():
    return sorted({record.rate for record in trainings(alone()).values()})


@pytest.mark.parametrize(("place", "is_at_edge"), [(0, True), (1, False), (2, True)])
def test_the_trainings_are_those_at_the_tuned_rate_and_one_at_the_edge_is_told(place, is_at_edge):
    best = rates()[place]
    cell, left = one(trainings(alone(), at(best)))
    assert [training.seed for training in cell.trainings] == [0, 1, 2, 3, 4]
    assert {training.rate for training in cell.trainings} == {best}
    assert cell.chosen == cell.trainings[0]
    assert [training.rate for training in cell.trials] == rates()
    assert (cell.at_edge, left) == (is_at_edge, 0)


def test_records_of_other_settings_are_left_out_and_counted():
    records = trainings(alone())
    others = trainings(alone(params={"train.weight_decay": 0.5}))
    cell, left = one(records | others | {"f" * 16: record(key="f" * 16)})
    assert {training.key for training in cell.trainings} < records.keys()
    assert left == len(others) + 1


def test_records_that_two_methods_of_the_same_settings_share_are_not_left_out():
    chosen = alone()
    methods = {"LoRA r=1": chosen.methods["LoRA r=1"], "the same": chosen.methods["LoRA r=1"]}
    others = trainings(alone(params={"train.weight_decay": 0.5}))
    _, left = cells("small", chosen.model_copy(update={"methods": methods}), trainings(chosen) | others)
    assert left == len(others)


def test_methods_of_the_same_settings_each_have_their_records_under_the_present_name():
    chosen = alone()
    (settings,) = chosen.methods.values()
    methods = {"renamed": settings, "the same": settings}
    tasks, _ = cells("small", chosen.model_copy(update={"methods": methods}), trainings(chosen))
    for name in methods:
        cell = tasks["rte"][name]
        assert {training.method for training in cell.trainings} == {name}
        assert len(cell.finished) == len(chosen.seeds)


def test_a_method_whose_tries_are_not_all_there_is_not_tuned_yet():
    first, *_ = records = trainings(alone())
    cell, _ = one({key: record for key, record in records.items() if key != first})
    assert (cell.status, cell.chosen, cell.finished) == ("not tuned yet", None, ())


BYTES = {"float32": 4000, "bfloat16": 2000, "4bit": 600, "3bit": 400, "2bit": 300}
WHOLE = {"validation": [0.7, 0.8, 0.8], "file_bytes": 4100}


def of(*records):
    """A cell of each task."""
    tasks = {}
    for one in records:
        tasks.setdefault(one.task, []).append(one)
    return [Cell((), tuple(of), of[0] if of[0].predicted else None, Path()) for of in tasks.values()]


def quantized(test=0.9, bytes_=BYTES, **validation):
    """Files at precisions, of which some validate at a score, in thousandths, and others at 800."""
    return {
        name: {"bytes": size, "validation": validation.get(f"v{name}", 800) / 1000, "test": {"accuracy": test}}
        for name, size in bytes_.items()
    }


@pytest.mark.parametrize(("validation", "expected"), [
    ({}, "2bit"),
    ({"v2bit": 797}, "3bit"),
    ({"v2bit": 700, "v3bit": 700}, "4bit"),
    ({"v4bit": 700, "v3bit": 799, "v2bit": 700}, "3bit"),
    ({"vfloat32": 810}, "float32"),
])  # fmt: skip
def test_the_smallest_that_loses_at_most_a_fifth_of_a_point(validation, expected):
    file = smallest(of(record(quantized=quantized(**validation), **WHOLE)))
    assert (file.precision, file.bytes, file.scores) == (expected, BYTES[expected], [pytest.approx(90)])


def test_the_mean_over_seeds_and_tasks_decides():
    seeds = [record(seed=seed, quantized=quantized(v2bit=loss), **WHOLE) for seed, loss in enumerate((794, 802, 800))]
    assert smallest(of(*seeds[:2])).precision == "2bit"
    assert smallest(of(seeds[0])).precision == "3bit"
    larger = {name: 2 * size for name, size in BYTES.items()}
    other = record(task="cola", metrics=["accuracy"], quantized=quantized(0.7, larger, v2bit=796), **WHOLE)
    file = smallest(of(*seeds, other))
    assert (file.precision, file.bytes) == ("3bit", 800)
    assert file.scores == [pytest.approx(80)]  # of the only seed that both have


def test_without_a_rounded_seed_on_a_task_all_is_as_trained():
    known, other = record(quantized=quantized(0.7), **WHOLE), record(task="cola", metrics=["accuracy"], **WHOLE)
    mean = 50 * (known.score() + other.score())
    file = smallest(of(known, other))
    assert (file.precision, file.bytes, file.scores) == ("as trained", 4100, [pytest.approx(mean)])
    unfinished = smallest(of(record(status="failed", file_bytes=7)))
    assert (unfinished.precision, unfinished.bytes, unfinished.scores) == ("as trained", 7, ())


def test_a_mean_over_seeds_has_the_interval_of_student():
    values = [81.0, 84.5, 83.0]
    student = stats.t.interval(0.95, len(values) - 1, loc=stats.tmean(values), scale=stats.sem(values))
    mean = estimate("score", values)
    assert (mean["score_low"], mean["score_high"]) == pytest.approx(student)
