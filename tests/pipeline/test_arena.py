"""The benchmark: equal trials for each method, validation decides, then further seeds; nothing is lost or repeated.

Its records are read from their file, and held to a run of the stages with the same settings.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import rows
from tests.helpers import merge, printed, read_json, read_table, refused, write

RECORDS = "reports/arena/small/records.jsonl"
FACTORS = [0.5, 1.0]
SEEDS = [0, 1]
PRESET = {
    "model": "models/bert",
    "tasks": {"two": {}},
    "seeds": SEEDS,
    "baseline": "LoRA",
    "tuning": {"rates": FACTORS, "extra_rates": 0, "head_rates": []},
    "sample_sizes": dict.fromkeys(("train", "validation", "test", "max_tokens"), "all"),
    "params": {"train.epochs": 1},
    "methods": {
        "head": {"adapter": "head_only"},
        "LoRA": {"adapter": "lora"},
    },
}
RATES = {
    "head": rows.SMALL["train"]["head_learning_rate"],
    "LoRA": rows.SMALL["lora"]["learning_rate"],
}


def make_folder(folder, **changes):
    """Write a workspace with the preset; return its folder."""
    rows.make_workspace(folder)
    write(folder / "pipeline/arena.yaml", {"small": merge(PRESET, changes)})
    return folder


def read_records(folder):
    """Return the records of whole lines."""
    whole, _, _ = (folder / RECORDS).read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def of_method(records, method):
    return [record for record in records if record["method"] == method]


def rate_of(record):
    """Return the rate that is tuned: that of the head, if nothing else is trained."""
    return record["head_rate"] if record["rate"] is None else record["rate"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which the command has run."""
    folder = make_folder(tmp_path_factory.mktemp("arena"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_WAIT_POLICY", "passive")  # threads that wait must not take time from others
        patch.setenv("OMP_NUM_THREADS", "1")  # what the command sets there ends with this run
        printed("pipeline.arena", "small", "--jobs", "1")
    return folder


@pytest.mark.parametrize("method", RATES)
def test_each_method_has_the_same_trials_with_the_first_seed(done, method):
    first = [record for record in of_method(read_records(done), method) if record["seed"] == SEEDS[0]]
    expected = [factor * RATES[method] for factor in FACTORS]
    assert sorted(map(rate_of, first)) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["head", "LoRA"])
def test_the_rate_that_validates_best_is_repeated_with_the_other_seeds(done, method):
    records = of_method(read_records(done), method)
    trials = [record for record in records if record["seed"] == SEEDS[0]]
    others = [record for record in records if record["seed"] != SEEDS[0]]
    highest = max(trial["validation"][-1] for trial in trials)
    best = [rate_of(trial) for trial in trials if trial["validation"][-1] == highest]
    assert [record["seed"] for record in others] == SEEDS[1:]
    assert all(rate_of(record) in best for record in others)


def test_a_record_says_what_a_run_of_the_stages_says(done, trained):
    run = trained("two", "bert", adapter="lora")
    report = read_json(run / "reports/evaluate/metrics.json")
    report |= report.pop("details")[0]
    (record,) = [
        record
        for record in of_method(read_records(done), "LoRA")
        if record["rate"] == RATES["LoRA"] and record["seed"] == SEEDS[0]
    ]
    names = read_json(run / "artifacts/adapter/task.json")["labels"]
    answers = read_table(run / "reports/evaluate/predictions.csv")
    predicted = [names.index(row["predicted"]) for row in answers]
    assert record["test"][0] == pytest.approx({name: report[name] for name in ("accuracy", "f1")}, abs=1e-5)
    assert record["validation"] == [read_json(run / "reports/train/metrics.json")["best_score"]]
    assert sorted(record["predicted"]) == sorted(predicted)
    assert (record["trained"], record["stored"]) == (report["adapter_trained"], report["adapter_stored"])


def test_a_second_call_runs_nothing(done, monkeypatch):
    monkeypatch.chdir(done)
    before = (done / RECORDS).read_bytes()
    printed("pipeline.arena", "small")
    assert (done / RECORDS).read_bytes() == before


MISTAKES = [
    ({"baseline": "LoRa"}, "LoRA"),
    ({"tuning": {"rates": [1.0, 1.0]}}, "tuning.rates"),
    ({"params": {"seed": 3}}, "seed"),
    ({"tasks": {"too": {}}}, "two"),
    ({"averages": {"main": ["two", "tow"]}}, "averages"),
    ({"methods": {"odd": {"adapter": "lora", "params": {"lsr.alpha": 1}}}}, "lsr.alpha"),
    ({"methods": {"odd": {"adapter": "lorra"}}}, "lorra"),
    ({"methods": {"odd": {"adapter": "lora", "params": {"lora.target_modules": ["kwery"]}}}}, "odd"),
    ({"model": "models/none"}, "models/none"),
    ({"rate": 3}, "rate"),
]


@pytest.mark.parametrize(("changes", "says"), MISTAKES)
def test_a_mistake_in_a_preset_is_one_line_before_anything_runs(tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(make_folder(tmp_path, **changes))
    refused("pipeline.arena", "small", says=says)
    assert not (tmp_path / RECORDS).exists()


@pytest.mark.parametrize("words", [["smal"], ["small", "--only", "two: LoRa"]])
def test_an_unknown_preset_or_cell_is_told_from_the_nearest(tmp_path, monkeypatch, words):
    monkeypatch.chdir(make_folder(tmp_path))
    refused("pipeline.arena", *words, says="did you mean")


def start(folder):
    """Start the command in a process group of its own."""
    command = [sys.executable, "-m", "pipeline.arena", "small", "--jobs", "2"]
    return subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)


def without_times(record):
    """Return what must be the same in another run."""
    return {name: value for name, value in record.items() if name not in ("seconds", "made")}


@pytest.mark.nightly
@pytest.mark.parametrize("count", [1, 4])
def test_a_killed_benchmark_goes_on_where_it_was(done, tmp_path, count):
    make_folder(tmp_path)
    process = start(tmp_path)
    while not (tmp_path / RECORDS).exists() or len(read_records(tmp_path)) < count:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_records(tmp_path)
    with (tmp_path / RECORDS).open("a", encoding="utf-8") as file:
        file.write('{"key": "0123')  # what a kill in the middle of a line leaves
    assert start(tmp_path).wait() == 0
    records = read_records(tmp_path)
    assert records[: len(kept)] == kept
    expected = {record["key"]: without_times(record) for record in read_records(done)}
    assert {record["key"]: without_times(record) for record in records} == expected
    assert len(records) == len(expected)


OTHERS = ["three", "multi_label", "number", "tenants"]


@pytest.mark.nightly
def test_every_kind_of_task_is_scored_as_by_the_stages(tmp_path, trained, monkeypatch):
    methods = {"LoRA": PRESET["methods"]["LoRA"]}
    preset = PRESET | {"tasks": {task: {} for task in OTHERS}, "methods": methods, "seeds": [0]}
    rows.make_workspace(tmp_path)
    write(tmp_path / "pipeline/arena.yaml", {"small": preset})
    monkeypatch.chdir(tmp_path)
    printed("pipeline.arena", "small")
    for record in read_records(tmp_path):
        assert record["status"] == "finished"
        if record["rate"] == RATES["LoRA"]:
            report = read_json(trained(record["task"], "bert", adapter="lora") / "reports/evaluate/metrics.json")
            assert record["test"][0][record["metrics"][0]] == pytest.approx(report["score"], abs=0.02)
            assert np.isfinite(record["predicted"]).all()
