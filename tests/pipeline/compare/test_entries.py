"""Which trainings count: those at the rate that the validation split chooses, of the newest form of a method."""

import pytest

from pipeline.compare.entries import entries
from tests.pipeline.compare.records import MADE, record


def one(found, tuning=(0,)):
    tasks, dropped = entries(found, tuning)
    ((entry,),) = (methods.values() for methods in tasks.values())
    return entry, dropped


def test_the_validation_score_chooses_the_rate_and_the_test_score_has_no_say():
    flattering = record(rate=0.008, validation=[0.1, 0.1, 0.1], test=[{"accuracy": 1.0}] * 3)
    modest = record(rate=0.002, validation=[0.9, 0.9, 0.9], test=[{"accuracy": 0.2}] * 3)
    entry, _ = one([flattering, modest, record(rate=0.002, seed=1), record(rate=0.008, seed=1)])
    assert entry.chosen == modest
    assert [training.seed for training in entry.trainings] == [0, 1]
    assert {training.rate for training in entry.trainings} == {0.002}
    assert entry.tries == (modest, flattering)


def test_a_seed_that_diverges_is_counted_and_named():
    lost = record(seed=2, status="diverged", reason="the loss is no finite number")
    entry, _ = one([record(), record(seed=1), lost])
    assert entry.status == "partly finished"
    assert (len(entry.finished), len(entry.trainings)) == (2, 3)
    assert entry.reason == "seed 2: diverged: the loss is no finite number"


@pytest.mark.parametrize(("rates", "chosen", "expected"), [
    ((0.001, 0.002, 0.004), 0.002, False),
    ((0.001, 0.002, 0.004), 0.004, True),
    ((0.001, 0.002, 0.004), 0.001, True),
    ((0.001,), 0.001, False),
])  # fmt: skip
def test_a_rate_at_the_edge_of_those_tried_is_told(rates, chosen, expected):
    entry, _ = one([record(rate=rate, validation=[0.5, 0.5, 0.9 if rate == chosen else 0.6]) for rate in rates])
    assert entry.at_edge == expected


def test_of_rates_that_validate_alike_the_one_with_all_seeds_is_chosen():
    alike = [record(rate=rate, validation=[0.5, 0.5, 0.8]) for rate in (0.002, 0.008)]
    entry, _ = one([*alike, record(rate=0.008, seed=1)])
    assert entry.chosen.rate == 0.008
    assert len(entry.trainings) == 2


def test_of_rates_with_all_seeds_the_tuned_one_is_chosen_by_all_seeds_of_tuning():
    # The first was chosen by one seed, before the preset asked for two.
    scores = {0.002: (0.8, 0.5), 0.008: (0.7, 0.7)}
    found = [
        record(rate=rate, seed=seed, validation=[0.1, 0.1, score])
        for rate, of in scores.items()
        for seed, score in enumerate(of)
    ]
    assert one(found)[0].chosen.rate == 0.002
    assert one(found, (0, 1))[0].chosen.rate == 0.008


def test_of_two_forms_of_a_method_the_newest_counts():
    new = {"overrides": {"lora.r": 3, "seed": 0}, "made": MADE | {"date": "2027-01-01T00:00:00+00:00"}, "key": "f" * 16}
    entry, dropped = one([record(), record(seed=1), record(**new)])
    assert [training.key for training in entry.trainings] == ["f" * 16]
    assert dropped == 2
    of_one_day = [record(key="f" * 16), record(key="0" * 16, overrides={"lora.r": 3, "seed": 0})]
    for found in (of_one_day, of_one_day[::-1]):
        assert one(found)[0].trainings == (found[-1],)
