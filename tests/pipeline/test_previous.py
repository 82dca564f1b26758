"""The last trained adapter comes back out of DVC's cache whole, with a note, or not at all."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from lsr_onnx.notes import PREVIOUS, previous_run
from pipeline import previous
from pipeline.core import artifacts
from tests.kit import digests, ended, write

FILES = {"adapter_model.safetensors": "weights", "deeper/tokenizer.json": "{}"}
VALUES = {"adapter": "lora", "model": "tiny", "data": "glue", "seed": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A repository of DVC's whose cache and lock DVC itself has made, without the adapter in the workspace."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    params = "{params.yaml: [adapter, model, data, seed]}"
    train = f"stages: {{train: {{cmd: 'true', params: [{params}], outs: [artifacts/adapter, artifacts/bank]}}}}"
    write("dvc.yaml", train)
    write("params.yaml", VALUES)
    put_files()
    with Repo() as repo:
        repo.commit(force=True)
    shutil.rmtree("artifacts")
    return tmp_path / ".dvc/cache/files/md5"


def put_files():
    for name, text in FILES.items():
        write(artifacts.ADAPTER / name, text)
    artifacts.BANK.mkdir()


def test_what_comes_back_is_what_dvc_has_kept_with_a_line_that_says_which_run_it_is_from(cache):
    previous.restore()
    restored = digests(artifacts.ADAPTER)
    note = restored.pop(f"{artifacts.ADAPTER}/{PREVIOUS}")
    shutil.rmtree("artifacts")
    put_files()
    assert restored == digests(artifacts.ADAPTER)
    assert note
    assert not artifacts.BANK.joinpath(PREVIOUS).exists()  # it is empty
    assert previous_run(artifacts.ADAPTER) is None
    shutil.rmtree("artifacts")
    previous.main([])
    line = previous_run(artifacts.ADAPTER)
    assert line.startswith("from the last finished training run: lora on tiny, glue, seed 3, not committed; ")


def test_it_comes_back_without_git_too(cache, monkeypatch, tmp_path):
    (tmp_path / "no-git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "no-git"))
    previous.restore()
    line = previous_run(artifacts.ADAPTER)
    assert line.startswith("from the last finished training run: lora on tiny, glue, seed 3, not committed; ")


def test_an_adapter_that_is_there_stays_and_a_temporary_copy_gets_none(cache, monkeypatch, tmp_path):
    write(artifacts.ADAPTER / "adapter_model.safetensors", "of a later run")
    previous.restore()
    assert digests("artifacts") == {
        f"{artifacts.ADAPTER}/adapter_model.safetensors": hashlib.sha256(b"of a later run").hexdigest()
    }
    shutil.rmtree("artifacts")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path.parent))
    previous.restore()
    assert not artifacts.ADAPTER.exists()


def test_of_a_cache_that_lacks_a_file_or_whose_file_is_damaged_nothing_comes_back(cache):
    listing = json.loads(next(cache.glob("*/*.dir")).read_text() or "[]") or json.loads(
        max(cache.glob("*/*.dir"), key=lambda path: path.stat().st_size).read_text()
    )
    md5 = listing[0]["md5"]
    cached = cache / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_text("damaged")
    status, out, _ = ended(previous.restore)
    assert (status, out.count("\n")) == (None, 1)
    assert f"{artifacts.ADAPTER}: not put back: " in out
    assert "damaged" in out
    cached.unlink()
    assert ended(previous.restore) == (None, "", "")
    assert not any(path.is_dir() for path in Path("artifacts").glob("*"))


def test_a_note_of_a_strangers_folder_is_one_line_that_a_terminal_can_show(tmp_path):
    write(tmp_path / PREVIOUS, b"\x1b[31mred\xff" + b"x" * 10_000 + b"\nsecond line")
    line = previous_run(tmp_path)
    assert line.startswith("\\x1b[31mred")
    assert len(line) <= 320
    assert "\n" not in line
    (tmp_path / PREVIOUS).unlink()
    os.mkfifo(tmp_path / PREVIOUS)  # which nobody writes to
    assert previous_run(tmp_path) is None
