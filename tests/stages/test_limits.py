"""A full disk ends in one line, and what was there before is whole."""

import multiprocessing
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from pipeline import stage
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, digests

pytestmark = pytest.mark.nightly

STAGES = {"tokenize": TOKENIZE, "factorize_init": FACTORIZE, "train": TRAIN, "evaluate": EVALUATE}
FULL = {  # the largest file that can be written, in bytes: where it ends
    ("tokenize", 1000): "File too large",
    ("factorize_init", 2000): "artifacts/init: cannot be written: File too large",
    ("train", 2000): ": cannot be written: File too large",
    ("train", 15_000): ": cannot be written: the file cannot be written completely",
    ("evaluate", 1000): ": cannot be written: File too large",
}


def run_limited(folder, name, largest, said):
    """Run a stage whose files have at most `largest` bytes, with its standard error in a file."""
    os.chdir(folder)
    sys.argv = ["command"]
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    torch.set_num_threads(1)
    module, view = STAGES[name]
    stage.run(module.main, view)


def written():
    return digests("artifacts") | digests("reports")


@pytest.mark.parametrize(("name", "size"), FULL)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(after, tmp_path_factory, name, size):
    folder = after(evaluate={"export": ["lora"]})
    before, said = written(), tmp_path_factory.mktemp("said") / "lines"
    process = multiprocessing.get_context("spawn").Process(target=run_limited, args=(folder, name, size, said))
    process.start()
    process.join()
    assert process.exitcode == 2
    (line,) = said.read_text().splitlines()
    assert line.endswith(FULL[name, size])
    assert written() == before
    assert not [path for folder in ("artifacts", "reports") for path in Path(folder).rglob(".*")]
