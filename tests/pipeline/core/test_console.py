"""Off a terminal all output is plain lines: no color, no control characters, no bar."""

import pytest

from pipeline.core import console


@pytest.fixture(autouse=True)
def off_a_terminal(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)


def test_a_table_is_one_line_a_row_whatever_the_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    console.table("title", ("split", "rows", "share"), [("train", 12345, 0.123456), ("test", 7, "a long cell " * 5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["title: split | rows | share", "  train | 12,345 | 0.1235"]
    assert len(lines) == 3


def test_long_work_shows_the_remaining_time_in_one_line(capsys, monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.progress("tokenize", 300, "texts") as advance:
        advance(100)
    assert capsys.readouterr().out == "tokenize: 100/300 texts, 0:00:20 left\n"
