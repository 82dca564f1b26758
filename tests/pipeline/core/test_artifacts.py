"""The writers leave the whole new content or the whole old one, and the same bytes every time."""

import os
import stat
from contextlib import suppress

import pytest

from pipeline.core import artifacts
from tests.kit import write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_the_whole_old_one_until_it_is_the_whole_new_one(tmp_path):
    old = tmp_path / "tokens"
    write(old / "kept.csv", "old")
    with suppress(RuntimeError), artifacts.replacing(old) as folder:
        write(folder / "half.csv", "new")
        raise RuntimeError
    assert [names(old), names(tmp_path)] == [["kept.csv"], ["tokens"]]
    with artifacts.replacing(old) as folder:
        write(folder / "fresh.csv", "new")
        assert names(old) == ["kept.csv"]
    assert [names(old), names(tmp_path)] == [["fresh.csv"], ["tokens"]]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_folder_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with artifacts.replacing(tmp_path / "adapter") as folder:
            (folder / "deeper").mkdir(parents=True)
            for name, own in (("a", 0o600), ("deeper/b", 0o444), ("c", 0o755)):
                (folder / name).touch()
                (folder / name).chmod(own)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [mode] * 3
