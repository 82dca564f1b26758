"""The experiments of a repository of DVC's, as a user's are."""

import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from pipeline.compare import experiments, reports
from tests.pipeline.compare.records import record, save

PARAMS = "data: rte\nmodel: minilm\nadapter: lora\nseed: 0\nlora:\n  r: 1\n"
PIPELINE = """
stages:
  evaluate:
    cmd: python run.py
    deps: [run.py]
    params: [data, model, adapter, seed, lora]
    metrics:
    - reports/evaluate/metrics.json: {cache: false}
    - reports/train/metrics.json: {cache: false}
"""
RUN = """
import json
from pathlib import Path
from ruamel.yaml import YAML

found = YAML(typ="safe", pure=True).load(Path("params.yaml"))
score = 0.5 + found["lora"]["r"] / 10 + found["seed"] / 100
metrics = {"evaluate": {"score": score, "adapter_trained": 7 * found["lora"]["r"]}, "train": {"score": 9.0}}
for name, values in metrics.items():
    Path("reports", name).mkdir(parents=True, exist_ok=True)
    Path("reports", name, "metrics.json").write_text(json.dumps(values))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two seeds of LoRA r = 1, and one of r = 2."""
    folder = tmp_path_factory.mktemp("repository")
    for name, text in {"params.yaml": PARAMS, "dvc.yaml": PIPELINE, "run.py": RUN}.items():
        (folder / name).write_text(text)
    for line in (
        "git init -q", "git config user.name somebody", "git config user.email somebody@example.org",
        "dvc init -q", "git add .", "git commit -q -m all",
        "dvc exp run -q --name first", "dvc exp run -q --name second -S seed=1",
        "dvc exp run -q --name third -S seed=0 -S lora.r=2", "git checkout -q .",
    ):  # fmt: skip
        tool, *words = line.split()
        command = [sys.executable, "-m", "dvc", *words] if tool == "dvc" else line.split()
        environment = os.environ | {
            "DVC_NO_ANALYTICS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    return folder


def test_scores_are_means_over_seeds_of_the_evaluation(repository):
    with chdir(repository):
        rows = experiments.rows(experiments.read())
    found = {row["differs"]: row for row in rows}
    assert set(found) == {"lora.r=1.0", "lora.r=2.0"}
    assert found["lora.r=1.0"]["score"] == pytest.approx(60.5)
    assert (found["lora.r=1.0"]["seeds"], found["lora.r=1.0"]["experiments"]) == ("0 1", "first second")
    assert (found["lora.r=2.0"]["score"], found["lora.r=2.0"]["adapter_trained"]) == (pytest.approx(70), 14)
    assert found["lora.r=1.0"]["adapter"] == "lora"


def test_they_are_in_every_form_of_the_tables(repository, tmp_path):
    with chdir(repository):
        save([record()], tasks=())
        rows = experiments.rows(experiments.read())
        reports.write_tables(tmp_path, reports.compare("small", [record()], "LoRA r=1", 100), rows)
    for name in ("experiments.csv", "comparison.json", "comparison.md"):
        assert "first second" in (tmp_path / name).read_text()
