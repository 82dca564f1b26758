"""Which trainings count: those at the setting that the plan tunes, and no records of other settings."""

import pytest

from pipeline.compare.entries import entries
from tests.pipeline.compare.records import prepare, preset, record, trainings, went


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def alone(**changes):
    return preset(["rte"], ["LoRA r=1"], **changes)


def one(records, **changes):
    tasks, left = entries("small", alone(**changes), records)
    ((entry,),) = (methods.values() for methods in tasks.values())
    return entry, left


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
    entry, left = one(trainings(alone(), at(best)))
    assert [training.seed for training in entry.trainings] == [0, 1, 2, 3, 4]
    assert {training.rate for training in entry.trainings} == {best}
    assert entry.chosen == entry.trainings[0]
    assert [training.rate for training in entry.tries] == rates()
    assert (entry.at_edge, left) == (is_at_edge, 0)


def test_records_of_other_settings_are_left_out_and_counted():
    records = trainings(alone())
    others = trainings(alone(params={"lsr.separation_rank": 1, "train.weight_decay": 0.5}))
    entry, left = one(records | others | {"f" * 16: record(key="f" * 16)})
    assert {training.key for training in entry.trainings} < records.keys()
    assert left == len(others) + 1


def test_a_method_whose_tries_are_not_all_there_is_not_tuned_yet():
    first, *_ = records = trainings(alone())
    entry, _ = one({key: record for key, record in records.items() if key != first})
    assert (entry.status, entry.chosen, entry.finished) == ("not tuned yet", None, ())
