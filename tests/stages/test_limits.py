"""A full disk ends in one line, and what was there before is whole."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline import stage
from tests import limits
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


def command(name):
    torch.set_num_threads(1)
    module, view = STAGES[name]
    stage.run(module.main, view)


def written():
    return digests("artifacts") | digests("reports")


@pytest.mark.parametrize(("name", "size"), FULL)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(after, name, size):
    folder = after(evaluate={"export": ["lora"]})
    before = written()
    ended = limits.run(folder, partial(command, name), size)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.endswith(FULL[name, size])
    assert written() == before
    assert not [path for folder in ("artifacts", "reports") for path in Path(folder).rglob(".*")]
