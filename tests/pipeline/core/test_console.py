"""Off a terminal all output is plain lines: no color, no control characters, no bar."""

import io
import re

import pytest
from rich.console import Console

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


def test_the_bar_shows_the_note_in_eighty_columns():
    terminal = Console(force_terminal=True, width=80, file=io.StringIO(), color_system=None)
    with console.progress("train", 3600, "steps", terminal) as advance:
        advance(1800, "loss [0.5], lr 0.00123")
        advance(1)
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", terminal.file.getvalue())
    assert re.search(r"train .*1801/3600 .*loss \[0\.5\], lr 0\.00123", shown)
