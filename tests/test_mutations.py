"""Whatever an adapter's folder holds, which a stranger may have made, is read or refused in one line."""

import os
import shutil
from pathlib import Path

import pytest

from lsr.__main__ import main
from tests import mutations
from tests.lsr.saved import CASES, save

COUNT = 200 if os.environ.get("LSR_NIGHTLY") == "1" else 20
EXPORT = ("export", "adapter", "--to", "lora", "-o", "out", "--force", "--base", "base")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An adapter beside its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    name, fields = CASES["patterns"]
    save(name, folder, **fields)
    return folder


def test_a_harmed_adapter_is_read_or_refused_in_one_line(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole / "base", "base")
    for what, changes in mutations.examples(mutations.adapters(whole / "adapter"), COUNT):
        shutil.copytree(whole / "adapter", "adapter")
        mutations.harm(Path("adapter"), changes)
        code, said = main(EXPORT), capsys.readouterr().err
        assert code in (0, 2), what
        assert len(said.splitlines()) == (code != 0), what
        assert len(said) <= 301, what
        assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "base", *({"out"} if code == 0 else ())}, what
        for name in ("adapter", "out"):
            shutil.rmtree(name, ignore_errors=True)
