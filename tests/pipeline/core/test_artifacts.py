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


def test_metrics_are_sorted_but_for_the_score_and_have_six_digits(tmp_path):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"b": 1 / 3, "a": 2, "score": 1, "name": "x"})
    assert path.read_text() == '{\n  "score": 1,\n  "a": 2,\n  "b": 0.333333,\n  "name": "x"\n}\n'


def test_a_table_has_a_header_six_digits_and_line_feeds_only(tmp_path):
    path = tmp_path / "lengths.csv"
    artifacts.write_csv(path, ("name", "value"), [("a,b", 1 / 3), ("c", 4)])
    assert path.read_bytes() == b'name,value\n"a,b",0.333333\nc,4\n'


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
