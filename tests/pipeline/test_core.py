"""Writers leave the whole new content or the whole old one, and another library's error is a line for a user."""

import errno
import os
import re
import stat
import sys
import warnings
from contextlib import suppress

import pandas as pd
import pytest

from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, exit_on_error
from tests.kit import write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_the_whole_old_one_until_it_is_the_whole_new_one(tmp_path):
    old = tmp_path / "tokens"
    write(old / "kept.csv", "old")
    with suppress(RuntimeError), artifacts.replace_atomically(old) as folder:
        write(folder / "half.csv", "new")
        raise RuntimeError
    assert [names(old), names(tmp_path)] == [["kept.csv"], ["tokens"]]
    with artifacts.replace_atomically(old) as folder:
        write(folder / "fresh.csv", "new")
        assert names(old) == ["kept.csv"]
    assert [names(old), names(tmp_path)] == [["fresh.csv"], ["tokens"]]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_folder_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with artifacts.replace_atomically(tmp_path / "adapter") as folder:
            (folder / "deeper").mkdir(parents=True)
            for name, own in (("a", 0o600), ("deeper/b", 0o444), ("c", 0o755)):
                (folder / name).touch()
                (folder / name).chmod(own)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [mode] * 3


def test_a_curve_is_a_bar_for_each_value_or_for_some_of_many():
    assert console.sparkline([0.1, 0.8, 0.45]) == "▁█▄"
    assert console.sparkline([0.5]) == "▁"
    assert len(console.sparkline(range(200))) == 50


def test_a_message_is_a_line_for_a_terminal_too_cut_between_words_and_only_a_long_value_within():
    assert str(UserError("a\x1b[2J\x0cb\u2028c\nd")) == "a\\x1b[2J\\x0cb\\u2028c\nd"
    shown = str(UserError(" ".join(f"word{number}" for number in range(100))))
    assert len(shown) <= 300
    assert shown.startswith("word0 word1 ")
    assert shown.endswith(" word98 word99")
    assert all(re.fullmatch(r"word\d+|\.\.\.", word) for word in shown.split())
    assert len(str(UserError(f"seed: got {'x' * 400} here"))) > 290


ENDS = {  # what happens: the exit code, and the line
    UserError("params.yaml: seed: no"): (2, "before: params.yaml: seed: no"),
    OSError(errno.ENOSPC, "full", "here"): (1, "program: here: No space left on device"),
    OSError("it says more"): (1, "program: it says more"),
    MemoryError(): (1, "program: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"): (1, "program: not enough memory"),
    RuntimeError("Error: I/O error: no (os error 28)"): (1, "program: No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:6] x"): (1, "program: the file cannot be written completely"),
    KeyboardInterrupt(): (130, "stopped"),
}


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_what_a_user_or_the_machine_does_ends_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as left, exit_on_error("stopped", "program", before="before: "):
        raise error
    assert (left.value.code, capsys.readouterr().err) == (ENDS[error][0], f"{ENDS[error][1]}\n")


def test_what_the_program_does_wrong_keeps_its_traceback():
    with pytest.raises(RuntimeError), exit_on_error("stopped"):
        raise RuntimeError("a bug")


def test_warnings_of_packages_are_printed_at_the_end_but_not_where_a_command_is_refused(capsys):
    with warnings.catch_warnings():  # without pytest, which keeps them itself
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        show = warnings.showwarning
        with exit_on_error("stopped"):
            warnings.warn("of a package", stacklevel=1)
            print("done", file=sys.stderr)
        assert capsys.readouterr().err == "done\nof a package\n"
        with suppress(SystemExit), exit_on_error("stopped"):
            warnings.warn("of a package", stacklevel=1)
            raise UserError("params.yaml: seed: no")
        assert capsys.readouterr().err == "params.yaml: seed: no\n"
        with suppress(RuntimeError), exit_on_error("stopped"):
            warnings.warn("of a package", stacklevel=1)
            raise RuntimeError("a bug")
        assert capsys.readouterr().err == "of a package\n"
        assert warnings.showwarning is show


HARD = ["plain", "a\rb", "c\r\nd", "e\nf", 'g "h", i', "\r", ""]


def test_a_table_of_any_texts_is_read_again_by_pandas_as_it_was(tmp_path):
    rows = [(text, number, 0.5) for number, text in enumerate(HARD)]
    artifacts.write_csv(tmp_path / "a.csv", ("a\rtext", "number", "share"), rows)
    found = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert found["a\rtext"].tolist() == HARD
    assert (found["number"].tolist(), set(found["share"])) == (list(range(len(HARD))), {0.5})
    artifacts.write_csv(tmp_path / "b.csv", ("text", "number"), [("plain", 1)])
    assert (tmp_path / "b.csv").read_bytes() == b"text,number\nplain,1\n"
