"""A full disk, and streams that are full or closed, end in one line, and what was there before is whole."""

from functools import partial
from pathlib import Path

import pytest
import torch

from lsr import __main__ as lsr
from pipeline import stage
from pipeline.predict import __main__ as predict
from tests import limits, workspace
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, digests, run

STAGES = {"tokenize": TOKENIZE, "factorize_init": FACTORIZE, "train": TRAIN, "evaluate": EVALUATE}
FULL = {  # the largest file that can be written, in bytes: where it ends
    ("tokenize", 1000): ": cannot be written: File too large",
    ("factorize_init", 2000): "artifacts/init: cannot be written: File too large",
    ("factorize_init", 20_000): "reports/factorize_init/start.png: cannot be written: File too large",
    ("train", 2000): "writing: cannot be written: File too large",
    ("train", 15_000): "writing: cannot be written: a file cannot be written to its end",
    ("evaluate", 2000): "artifacts/exports: cannot be written: File too large",
}


def command(name):
    """Run a stage, or one of the two commands.

    Raises:
        SystemExit: as these do.
    """
    torch.set_num_threads(1)
    if name == "predict":
        raise SystemExit(predict.main(["an owl", "a fox"]))
    if name == "lsr":
        raise SystemExit(lsr.main(["inspect", "artifacts/adapter"]))
    module, view = STAGES[name]
    stage.run(module.main, view)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace after all stages."""
    folder = tmp_path_factory.mktemp("trained")
    workspace.make(folder, data="comparisons", train={"epochs": 1}, evaluate={"export": ["lora", "merged"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        run(*STAGES.values())
    return folder


@pytest.fixture
def at(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return trained


def written():
    return digests("artifacts") | digests("reports")


def leftovers():
    return [path for folder in ("artifacts", "reports") for path in Path(folder).rglob(".*")]


@pytest.mark.parametrize(("name", "size"), FULL)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(at, name, size):
    before = written()
    ended = limits.run(at, partial(command, name), size)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.endswith(FULL[name, size])
    assert written() == before
    assert not leftovers()


@pytest.mark.parametrize("name", ["tokenize", "evaluate", "predict", "lsr"])
def test_a_full_standard_output_is_one_line(at, name):
    ended = limits.run(at, partial(command, name), stdout="/dev/full")
    program = {"predict": "pipeline.predict", "lsr": "lsr inspect"}.get(name, f"stages.{name}")
    assert (ended.code, ended.err) == (1, f"python -m {program}: standard output: No space left on device\n")


@pytest.mark.parametrize("name", ["tokenize", "predict"])
def test_closed_streams_take_whatever_is_said(at, name):
    ended = limits.run(at, partial(command, name), stdin="closed", stdout="closed", stderr="closed")
    assert ended.code == 0


def test_where_nobody_can_be_told_the_exit_code_says_it(at):
    ended = limits.run(at, partial(command, "predict"), stdout="/dev/full", stderr="/dev/full")
    assert ended.code == 1
