"""Trainings on several processes, started by torchrun: one set of files, near those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsr.tuner.files import WEIGHTS
from pipeline.core import artifacts
from tests import workspace
from tests.stages.running import TRAIN, report, run

pytestmark = pytest.mark.nightly


def torchrun(count):
    environment = os.environ | {"PYTHONPATH": str(workspace.ROOT), "OMP_NUM_THREADS": "1"}
    launcher = Path(sys.executable).with_name("torchrun")
    words = [launcher, "--standalone", "--nproc_per_node", str(count), "-m", "stages.train"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_two_processes_train_what_one_does_but_for_rounding(after):
    folder = after(train={"batch_size": 10})  # of 130 rows: a smaller last batch would be filled up
    path = folder / "tiny-roberta/config.json"  # each process draws its own dropout
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    run(TRAIN)
    alone, scores = load_file(artifacts.ADAPTER / WEIGHTS), report(artifacts.TRAIN_METRICS)
    done = torchrun(2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: epoch") == 1
    torch.testing.assert_close(load_file(artifacts.ADAPTER / WEIGHTS), alone, rtol=1e-3, atol=1e-4)
    assert report(artifacts.TRAIN_METRICS) == pytest.approx(scores, rel=1e-3)
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())
