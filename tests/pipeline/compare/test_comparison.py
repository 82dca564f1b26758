"""What the comparison says: averages, differences to the baseline, rows for what failed, and what it leaves out."""

from contextlib import chdir
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.comparison import compare
from tests.pipeline.compare import records as made

RESAMPLES = 400
HELD = {"method": "LoRA r=8", "expected": "better", "versus": "LoRA r=1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    with chdir(folder):
        made.prepare(folder)
        yield folder


@pytest.fixture(scope="module")
def records(folder):
    return made.trainings(made.preset(), made.some_go_wrong)


@pytest.fixture(scope="module")
def found(records):
    return compare("small", records, made.preset(), RESAMPLES)


def row(found, task, method):
    (one,) = [row for row in found["results"] if (row["task"], row["method"]) == (task, method)]
    return one


def test_every_method_has_a_row_on_every_task(found):
    assert len(found["results"]) == len(made.SIZES) * (len(made.TASKS) + 1)
    lost, partly = row(found, "cola", "VeRA"), row(found, "rte", "LSR 200")
    assert (lost["status"], lost["score"], lost["scores"]) == ("diverged", None, {})
    assert made.LOST in lost["reason"]
    assert (len(partly["scores"]), partly["trainings"], partly["status"]) == (4, 5, "partly finished")
    assert partly["reason"] == "seed 4: failed: not enough memory"
    assert row(found, "rte", "head alone")["these"]["word"] == "behind"
    assert row(found, "rte", "LoRA r=1")["difference"] is None


def test_tenants_without_texts_in_training_have_means_over_tenants_with_intervals_over_seeds(records):
    def with_unseen(one):
        scores = {"books": {0: 0.7 + one.seed / 100, 20: 0.8}, "toys": {0: 0.9, 20: 0.6}}
        return one.model_copy(update={"unseen": scores, "epochs": 12})

    scored = {key: with_unseen(one) if one.task != "stsb" else one for key, one in records.items()}
    averages = {"two": ("cola", "rte")}
    found = compare("small", scored, made.preset().model_copy(update={"averages": averages}), RESAMPLES)
    chosen = row(found, "rte", "LoRA r=8")
    means = [80 + seed / 2 for seed in range(5)]
    interval = stats.t.interval(0.95, 4, loc=np.mean(means), scale=stats.sem(means))
    without = chosen["unseen"]["0"]
    assert (without["score"], without["score_low"], without["score_high"]) == pytest.approx((81.0, *interval), abs=1e-4)
    assert chosen["unseen"]["20"]["score"] == pytest.approx(70.0)
    assert row(found, "two", "LoRA r=8")["unseen"] == chosen["unseen"]  # both tasks have the same scores by seed
    assert chosen["epochs"] == 12
    assert "unseen" not in row(found, "stsb", "LoRA r=8")


def test_an_average_is_over_its_tasks_and_without_a_method_that_was_not_run_on_all(records):
    averages = {"two": ("rte", "stsb"), "three": ("cola", "rte", "stsb")}
    left = {key: one for key, one in records.items() if (one.method, one.task) != ("LoRA r=2", "cola")}
    found = compare("small", left, made.preset().model_copy(update={"averages": averages}), RESAMPLES)
    two, three = (row(found, place, "LoRA r=2") for place in averages)
    assert two["score"] == pytest.approx(fmean(row(found, task, "LoRA r=2")["score"] for task in ("rte", "stsb")))
    assert two["difference"] == pytest.approx(two["score"] - row(found, "two", "LoRA r=1")["score"], abs=1e-4)
    assert (three["status"], three["reason"], three["these"]["word"]) == ("not run", "on cola", None)
    assert found["results"][-1]["task"] == "three"
    assert found["notes"] == []


@pytest.mark.parametrize("names", [("shop 0", "shop 1"), ("01", "1"), ("NA", "null")])
def test_a_difference_on_a_task_of_tenants_is_over_them_too(folder, names):
    """Tenants are drawn as the tasks of an average are; without their names they are one task."""
    chosen = made.preset(tasks=["rte"], hypotheses=[{**HELD, "on": "rte"}])
    records = made.trainings(chosen)
    made.save_labels("rte")
    plain = compare("small", records, chosen, RESAMPLES)
    whose = np.array([names[at * at % 4] for at in range(made.EXAMPLES)])
    made.save_labels("rte", tenant=whose)
    found = compare("small", dict(made.with_means(records, whose)), chosen, RESAMPLES)
    made.save_labels("rte")
    assert found["notes"] == []
    with_them, without = (row(one, "rte", "LoRA r=8") for one in (found, plain))
    right = {method: row(found, "rte", method)["score"] for method in ("LoRA r=8", "LoRA r=1")}
    assert with_them["difference"] == pytest.approx(right["LoRA r=8"] - right["LoRA r=1"], abs=1e-4)
    assert with_them["error_examples"] == pytest.approx(without["error_examples"], rel=0.3)
    assert with_them["new"]["high"] > with_them["difference"]
    assert without["new"]["high"] is None
    assert found["hypotheses"][0]["new"]["word"]


def test_without_usable_labels_errors_are_of_seeds_alone_and_a_note_says_why(records):
    (made.LABELS / "rte.csv").unlink()
    made.save_labels("cola", examples=150)
    found = compare("small", records, made.preset(), RESAMPLES)
    assert f"rte: {made.LABELS}/rte.csv is not there, so its errors are of seeds alone" in found["notes"]
    assert any(note.startswith("cola: 150 labels, but head alone has 200 predictions") for note in found["notes"])
    alone, both, mean = (row(found, place, "LoRA r=8") for place in ("rte", "stsb", "average"))
    assert (alone["error_examples"], mean["error_examples"]) == (None, None)
    assert alone["these"]["low"] is not None
    assert both["error_examples"] > 0
