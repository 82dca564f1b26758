"""What the comparison says: averages, differences to the baseline, rows for what failed, and what it leaves out."""

from contextlib import chdir
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.compare import tables
from pipeline.compare.comparison import compare
from pipeline.compare.rows import AVERAGE
from pipeline.core.errors import UserError
from pipeline.evaluation import scores
from tests.pipeline.compare.records import TASKS, cells, labels, record, save_examples

RESAMPLES = 400


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in TASKS:
        save_examples(task)


@pytest.fixture(scope="module")
def records():
    return cells()


@pytest.fixture(scope="module")
def found(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    with chdir(folder):
        for task in TASKS:
            save_examples(task)
        return compare("small", records, "LoRA r=1", RESAMPLES)


def test_every_method_has_a_row_on_every_task(found):
    listed = tables.results(found)
    assert len(listed) == len(found.methods) * (len(TASKS) + 1)
    (lost,) = [row for row in listed if (row["method"], row["task"]) == ("VeRA", "cola")]
    assert (lost["status"], lost["score"], lost["seeds"]) == ("diverged", None, 0)
    assert "the loss is no finite number" in lost["reason"]


def test_the_average_is_the_mean_of_the_tasks_in_percent_seed_by_seed(found, records):
    row = found.rows[AVERAGE]["LoRA r=8"]
    expected = fmean(found.rows[task]["LoRA r=8"].scores[3] for task in TASKS)
    assert row.scores[3] == pytest.approx(expected)
    one = next(r for r in found.cells["stsb"]["LoRA r=8"].runs if r.seed == 3)
    by_hand = scores.score(("pearson",), np.array(one.predicted), labels("stsb"))["pearson"]
    assert found.rows["stsb"]["LoRA r=8"].scores[3] == pytest.approx(100 * by_hand)


def test_a_method_that_lacks_a_task_has_no_average_but_a_reason(found):
    row = found.rows[AVERAGE]["VeRA"]
    assert row.scores == {}
    assert row.status == "diverged"
    assert row.reason.startswith("cola: ")
    assert "VeRA" not in found.ranking.ranks


def test_a_seed_that_failed_is_left_out_of_the_mean_and_told(found):
    row = found.rows["rte"]["LSR 200"]
    assert (row.score.seeds, row.runs, row.status) == (4, 5, "partly finished")
    assert row.reason == "seed 4: failed: not enough memory"


def test_differences_are_seed_by_seed_and_p_values_corrected(found):
    pair = found.pairs["rte"]["LoRA r=8"]
    rows = found.rows["rte"]
    by_seed = [rows["LoRA r=8"].scores[seed] - rows["LoRA r=1"].scores[seed] for seed in range(5)]
    assert pair.over_seeds.mean == pytest.approx(fmean(by_seed))
    assert pair.low < pair.over_seeds.mean < pair.high
    assert 0 < pair.p <= pair.p_holm <= 1
    assert found.pairs[AVERAGE]["head alone"].p_holm < 0.05
    assert "LoRA r=1" not in found.pairs["rte"]


def test_the_bootstrap_agrees_with_the_exact_test_on_accuracy():
    # McNemar's: of the examples on which one seed of each differ, half would go either way.
    found = compare("small", cells(("LoRA r=1", "LoRA r=8"), ("rte",), (0,)), "LoRA r=1", 10_000)
    first, second = (np.array(found.cells["rte"][name].runs[0].predicted) for name in ("LoRA r=1", "LoRA r=8"))
    right, left = first == labels("rte"), second == labels("rte")
    wins, losses = int((left & ~right).sum()), int((right & ~left).sum())
    paired = found.pairs["rte"]["LoRA r=8"]
    assert paired.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=0.06)
    assert paired.over_seeds.mean == pytest.approx(100 * (wins - losses) / len(right))
    assert paired.over_seeds.low is None  # one seed


def test_lora_of_three_ranks_is_always_there():
    found = compare("small", [record(), record("VeRA")], "LoRA r=1", RESAMPLES)
    assert {"LoRA r=1", "LoRA r=2", "LoRA r=8"} <= set(found.methods)
    row = found.rows["rte"]["LoRA r=8"]
    assert (row.status, row.reason) == ("not run", "no record in the arena")
    assert found.ranking is None


def test_best_epochs_on_test_stand_beside_the_selected_ones_and_flatter(found):
    for row in tables.results(found):
        if row["score"] is not None:
            assert row["best_epoch_on_test"] >= row["score"] - 1e-9
            assert row["flattery"] == pytest.approx(row["best_epoch_on_test"] - row["score"])
    assert "would add" in tables.flattery(found)


def test_a_baseline_that_is_not_there_is_one_line_with_all_methods(records):
    with pytest.raises(UserError) as error:
        compare("small", records, "LoRA r=9", RESAMPLES)
    (line,) = str(error.value).splitlines()
    assert line.startswith("--baseline: small has no method 'LoRA r=9'; did you mean LoRA r=")
    assert "methods: head alone, LSR 200" in line
    with pytest.raises(UserError, match="no method 'LoRA r=1'"):
        compare("small", [record("VeRA")], "LoRA r=1", RESAMPLES)  # a row that nobody has run is no baseline


def test_without_examples_there_is_no_bootstrap_and_a_line_says_so(records, tmp_path):
    (tmp_path / "reports/arena/small/examples/rte.parquet").unlink()
    save_examples("cola", examples=150)
    found = compare("small", records, "LoRA r=1", RESAMPLES)
    lines = {line.partition(":")[0]: line for line in found.lines}
    assert lines["rte"] == "rte: no reports/arena/small/examples/rte.parquet, so no bootstrap and no disagreements"
    assert "150 examples, but head alone has 200 predictions" in lines["cola"]
    assert found.pairs["rte"]["LoRA r=8"].p is None
    assert found.pairs["rte"]["LoRA r=8"].over_seeds.mean is not None
    assert found.pairs["stsb"]["LoRA r=8"].p is not None
    assert found.pairs[AVERAGE]["LoRA r=8"].p is None


def test_labels_that_do_not_give_the_scores_are_of_no_use(tmp_path, records):
    path = tmp_path / "reports/arena/small/examples/rte.parquet"
    table = pd.read_parquet(path)
    table.iloc[::-1].to_parquet(path)
    (line,) = compare("small", records, "LoRA r=1", RESAMPLES).lines
    assert "accuracy 0." in line
    assert "in the record of head alone, seed 0, so no bootstrap and no disagreements" in line


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_examples_that_cannot_be_read_are_one_line(content, tmp_path, records):
    path = tmp_path / "reports/arena/small/examples/rte.parquet"
    if content is None:
        pd.DataFrame({"text": ["a"], "text_pair": [None], "label": ["x"]}).to_parquet(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"examples/rte.parquet: not the examples of a task: .*; delete it"):
        compare("small", records, "LoRA r=1", RESAMPLES)


def test_records_of_several_commits_are_told():
    other = record(seed=1, made={"commit": "fedcba", "cpu": "another one"})
    found = compare("small", [record(), other], "LoRA r=1", RESAMPLES)
    assert "records are from 2 commits: 0123456789abcdef, fedcba" in found.lines


def test_a_task_where_all_fail_has_rows_and_no_ranks_of_it():
    lost = [record(name, "cola", status="failed", reason="not enough memory") for name in ("LoRA r=1", "VeRA")]
    found = compare("small", [*lost, record(), record("VeRA")], "LoRA r=1", RESAMPLES)
    assert [row.status for row in found.rows["cola"].values() if row.runs] == ["failed", "failed"]
    assert found.ranking is None
    assert found.pairs[AVERAGE] == {}
