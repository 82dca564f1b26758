"""What the comparison says: averages, differences to the baseline, rows for what failed, and what it leaves out."""

from contextlib import chdir
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from pipeline.arena.record import labels_path
from pipeline.compare import tables
from pipeline.compare.comparison import compare
from pipeline.tasks import scores
from tests.pipeline.compare.records import TASKS, labels, preset, save_labels, trainings

AVERAGE, RESAMPLES = "average", 400
ALONE = {"tasks": {"rte": {}}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        save_labels(task)


@pytest.fixture(scope="module")
def records():
    return trainings()


@pytest.fixture(scope="module")
def found(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    with chdir(folder):
        for task in TASKS:
            save_labels(task)
        return compare("small", records, preset(), RESAMPLES)


def test_every_method_has_a_row_on_every_task(found):
    listed = tables.everything(found)["results"]
    assert len(listed) == len(found.methods) * (len(TASKS) + 1)
    (lost,) = [row for row in listed if (row["method"], row["task"]) == ("VeRA", "cola")]
    assert (lost["status"], lost["score"], lost["scores"]) == ("diverged", None, {})
    assert "the loss is no finite number" in lost["reason"]


def test_the_average_is_the_mean_of_the_tasks_in_percent_seed_by_seed(found, records):
    row = found.rows[AVERAGE]["LoRA r=8"]
    assert row.scores[3] == pytest.approx(fmean(found.rows[task]["LoRA r=8"].scores[3] for task in TASKS))
    rate = found.rows["stsb"]["LoRA r=8"].rate
    (one,) = [r for r in records if (r.task, r.method, r.seed, r.rate) == ("stsb", "LoRA r=8", 3, rate)]
    by_hand = scores.score(("pearson",), np.array(one.predicted), labels("stsb"))["pearson"]
    assert found.rows["stsb"]["LoRA r=8"].scores[3] == pytest.approx(100 * by_hand)


def test_an_average_is_over_its_tasks_and_without_a_method_that_was_not_run_on_all(records):
    averages = {"two": ("rte", "stsb"), "three": ("cola", "rte", "stsb")}
    left = [one for one in records if (one.method, one.task) != ("LoRA r=2", "cola")]
    found = compare("small", left, preset().model_copy(update={"averages": averages}), RESAMPLES)
    two, three = found.rows["two"]["LoRA r=2"], found.rows["three"]["LoRA r=2"]
    assert two.score.mean == pytest.approx(fmean(found.rows[task]["LoRA r=2"].score.mean for task in ("rte", "stsb")))
    assert two.verdict.difference == pytest.approx(two.score.mean - found.rows["two"]["LoRA r=1"].score.mean)
    assert (three.status, three.reason, three.verdict.verdict) == ("not run", "on cola", None)
    assert found.main == "three"
    assert found.notes == []


def test_a_seed_that_failed_is_left_out_of_the_mean_and_reported(found):
    row = found.rows["rte"]["LSR 200"]
    assert (len(row.scores), row.trainings, row.status) == (4, 5, "partly finished")
    assert row.reason == "seed 4: failed: not enough memory"


def test_leads_are_seed_by_seed_and_p_values_corrected(found):
    rows = found.rows["rte"]
    of = rows["LoRA r=8"].verdict
    by_seed = [rows["LoRA r=8"].scores[seed] - rows["LoRA r=1"].scores[seed] for seed in range(5)]
    assert of.difference == pytest.approx(fmean(by_seed))
    assert of.difference_low < of.equivalence_low < of.difference < of.equivalence_high < of.difference_high
    assert of.error_seeds == pytest.approx(stats.sem(by_seed))
    assert 0 < of.p <= of.p_holm <= 1
    assert found.rows["rte"]["head alone"].verdict.verdict == "worse"
    assert rows["LoRA r=1"].verdict.difference is None


def test_without_usable_labels_errors_are_of_seeds_alone_and_a_note_says_why(records, tmp_path):
    labels_path("small", "rte").unlink()
    save_labels("cola", examples=150)
    found = compare("small", records, preset(), RESAMPLES)
    path, private = (labels_path("small", "rte", private=is_private) for is_private in (False, True))
    assert f"rte: neither {path} nor {private} is there, so its errors are of seeds alone" in found.notes
    assert any(note.startswith("cola: 150 labels, but head alone has 200 predictions") for note in found.notes)
    alone, both = found.rows["rte"]["LoRA r=8"].verdict, found.rows["stsb"]["LoRA r=8"].verdict
    assert (alone.error_examples, alone.p is None) == (None, False)
    assert both.error_examples > 0
    assert found.rows[AVERAGE]["LoRA r=8"].verdict.error_examples is None
