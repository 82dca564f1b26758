"""The line of a refusal is the only one on standard error, whatever PEFT and torch print before they refuse a value."""

import shutil
import sys

import pytest

from tests import workspace
from tests.stages.running import FACTORIZE, TOKENIZE, ended_alone, run_in

SECTIONS = [  # what PEFT or torch warns of, or draws a bar of, and then refuses
    ({"type": "BOFT", "boft_block_size": -1}, "Dimension size must be non-negative"),
    ({"type": "BOFT", "bias": "nope"}, "Requested bias: nope, is not implemented"),
    ({"type": "FROD", "bias": "nope"}, "Requested bias: nope, is not implemented"),
    ({"type": "LORA", "trainable_token_indices": "nope"}, "too many indices for tensor of dimension 2"),
    ({"type": "RANDLORA", "r": 0}, "r: must be a whole number of at least 1, got 0"),
    ({"type": "GLORA", "r": 0}, "r: must be a whole number of at least 1, got 0"),
]


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    return run_in(workspace.make(tmp_path_factory.mktemp("refusals") / "made"), TOKENIZE)


@pytest.mark.parametrize(("section", "says"), SECTIONS, ids=[f"{section['type']}-{says}" for section, says in SECTIONS])
def test_a_refusal_is_the_only_line_on_standard_error(tokenized, tmp_path, monkeypatch, section, says):
    monkeypatch.chdir(shutil.copytree(tokenized, tmp_path / "workspace"))
    workspace.change(adapter="mine", mine={"learning_rate": 0.001, **section})
    monkeypatch.setattr(sys, "argv", ["stage"])
    stage, view = FACTORIZE
    status, err = ended_alone(stage, view)
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith("params.yaml: mine: ")
    assert says in err
