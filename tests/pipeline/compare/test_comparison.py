"""What the comparison says: averages, differences to the baseline, rows for what failed, and what it leaves out."""

from contextlib import chdir
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from pipeline.arena.record import labels_path
from pipeline.compare import tables
from pipeline.compare.comparison import AVERAGE, compare
from pipeline.core.artifacts import write_csv
from pipeline.core.errors import UserError
from pipeline.evaluation import scores
from tests.pipeline.compare.records import TASKS, cells, labels, record, save_labels

RESAMPLES = 400


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        save_labels(task)


@pytest.fixture(scope="module")
def records():
    return cells()


@pytest.fixture(scope="module")
def found(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    with chdir(folder):
        for task in TASKS:
            save_labels(task)
        return compare("small", records, "LoRA r=1", RESAMPLES)


def test_every_method_has_a_row_on_every_task(found):
    listed = tables.everything(found)["results"]
    assert len(listed) == len(found.methods) * (len(TASKS) + 1)
    (lost,) = [row for row in listed if (row["method"], row["task"]) == ("VeRA", "cola")]
    assert (lost["status"], lost["score"], lost["seeds"]) == ("diverged", None, 0)
    assert "the loss is no finite number" in lost["reason"]


def test_the_average_is_the_mean_of_the_tasks_in_percent_seed_by_seed(found, records):
    row = found.rows[AVERAGE]["LoRA r=8"]
    assert row.scores[3] == pytest.approx(fmean(found.rows[task]["LoRA r=8"].scores[3] for task in TASKS))
    rate = found.rows["stsb"]["LoRA r=8"].rate
    (one,) = [r for r in records if (r.task, r.method, r.seed, r.rate) == ("stsb", "LoRA r=8", 3, rate)]
    by_hand = scores.score(("pearson",), np.array(one.predicted), labels("stsb"))["pearson"]
    assert found.rows["stsb"]["LoRA r=8"].scores[3] == pytest.approx(100 * by_hand)


def test_a_method_that_lacks_a_task_has_no_average_but_a_reason(found):
    row = found.rows[AVERAGE]["VeRA"]
    assert (row.scores, row.status) == ({}, "diverged")
    assert row.reason.startswith("cola: ")


def test_a_method_that_nobody_has_run_on_a_task_says_so():
    found = compare("small", [record(), record("VeRA", "cola"), record(task="cola")], "LoRA r=1", RESAMPLES)
    row = found.rows["rte"]["VeRA"]
    assert (row.status, row.reason) == ("not run", "no record in the arena")


def test_a_seed_that_failed_is_left_out_of_the_mean_and_reported(found):
    row = found.rows["rte"]["LSR 200"]
    assert (row.score.seeds, row.trainings, row.status) == (4, 5, "partly finished")
    assert row.reason == "seed 4: failed: not enough memory"


def test_differences_are_seed_by_seed_and_p_values_corrected(found):
    pair, rows = found.pairs["rte"]["LoRA r=8"], found.rows["rte"]
    by_seed = [rows["LoRA r=8"].scores[seed] - rows["LoRA r=1"].scores[seed] for seed in range(5)]
    assert pair.over_seeds.mean == pytest.approx(fmean(by_seed))
    assert pair.low < pair.over_seeds.mean < pair.high
    assert 0 < pair.p <= pair.p_holm <= 1
    assert found.pairs[AVERAGE]["head alone"].p_holm < 0.05
    assert "LoRA r=1" not in found.pairs["rte"]


def test_the_bootstrap_agrees_with_the_exact_test_on_accuracy():
    # McNemar's: of the examples on which one seed of each differ, half would go either way.
    records = cells(("LoRA r=1", "LoRA r=8"), ("rte",), (0,))
    found = compare("small", records, "LoRA r=1", 10_000)
    chosen = {method: found.rows["rte"][method].rate for method in ("LoRA r=1", "LoRA r=8")}
    first, second = (
        next(np.array(one.predicted) for one in records if (one.method, one.rate) == item) for item in chosen.items()
    )
    right, left = first == labels("rte"), second == labels("rte")
    wins, losses = int((left & ~right).sum()), int((right & ~left).sum())
    paired = found.pairs["rte"]["LoRA r=8"]
    assert paired.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=0.06)
    assert paired.over_seeds.mean == pytest.approx(100 * (wins - losses) / len(right))
    assert paired.over_seeds.low is None  # one seed


def test_an_unknown_baseline_is_one_line_with_all_methods(records):
    with pytest.raises(UserError) as error:
        compare("small", records, "LoRA r=9", RESAMPLES)
    (line,) = str(error.value).splitlines()
    assert line.startswith("--baseline: small has no method 'LoRA r=9'; did you mean LoRA r=")
    assert "methods: head alone, LSR 200" in line


def test_without_usable_labels_there_is_no_bootstrap_and_a_note_says_why(records, tmp_path):
    labels_path("small", "rte").unlink()
    save_labels("cola", examples=150)
    found = compare("small", records, "LoRA r=1", RESAMPLES)
    assert "rte: no labels, so no bootstrap" in found.notes
    assert any(note.startswith("cola: 150 labels, but head alone has 200 predictions") for note in found.notes)
    assert found.pairs["rte"]["LoRA r=8"].p is None
    assert found.pairs["rte"]["LoRA r=8"].over_seeds.mean is not None
    assert found.pairs["stsb"]["LoRA r=8"].p is not None
    assert found.pairs[AVERAGE]["LoRA r=8"].p is None


def test_labels_that_do_not_give_the_scores_are_not_used(records):
    write_csv(labels_path("small", "rte"), ["label"], [[label] for label in labels("rte")[::-1].tolist()])
    (note,) = compare("small", records, "LoRA r=1", RESAMPLES).notes
    assert note.startswith("rte: accuracy 0.")
    assert note.endswith("in the record of head alone, so no bootstrap")


@pytest.mark.parametrize("content", ["text\na\n", "label\nx\n"])
def test_labels_that_cannot_be_read_are_one_line(content, records):
    labels_path("small", "rte").write_text(content)
    with pytest.raises(UserError, match=r"labels/rte.csv: not the labels of a task: .*; delete it"):
        compare("small", records, "LoRA r=1", RESAMPLES)


def test_records_of_an_earlier_engine_have_means_and_intervals():
    # One entry in the place of the epochs, no predictions, no losses and no peak.
    old = [
        record(
            method, seed=seed, validation=[0.8], test=[{"accuracy": 0.8 + 0.01 * seed}],
            loss=[], predicted=[], peak_bytes=None,
        )
        for method in ("LoRA r=1", "LSR 200")
        for seed in (0, 1, 2)
    ]  # fmt: skip
    found = compare("small", old, "LoRA r=1", RESAMPLES)
    row, pair = found.rows["rte"]["LSR 200"], found.pairs["rte"]["LSR 200"]
    assert found.notes == ("rte: records without predictions, so no bootstrap",)
    assert (row.score.mean, row.size.peak_bytes, pair.p) == (pytest.approx(81), None, None)
    assert row.score.high > 81


def test_records_of_several_commits_are_noted_and_all_origins_listed():
    other = record(seed=1, made={"commit": "fedcba", "cpu": "another one", "date": "2027-01-01"})
    found = compare("small", [record(), other], "LoRA r=1", RESAMPLES)
    assert "records are from 2 commits" in found.notes
    assert found.made["commit"] == ["0123456789abcdef", "fedcba"]
    assert found.made["date"] == ["2026-11-26T10:00:00+00:00", "2027-01-01"]


def test_a_task_where_all_fail_has_rows_and_no_differences():
    lost = [record(name, "cola", status="failed", reason="not enough memory") for name in ("LoRA r=1", "VeRA")]
    found = compare("small", [*lost, record(), record("VeRA")], "LoRA r=1", RESAMPLES)
    assert [row.status for row in found.rows["cola"].values()] == ["failed", "failed"]
    assert found.pairs[AVERAGE] == {}
