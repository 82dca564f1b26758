"""The page of capabilities says what the probes find."""

import json
import re
import runpy

import pytest

from benchmarks.capabilities import __main__ as command
from benchmarks.capabilities import answers
from benchmarks.capabilities.probes import BEHAVIORS
from benchmarks.capabilities.subjects import METHODS
from tests.workspace import ROOT

DOCS = runpy.run_path(str(ROOT / "docs/capabilities.py"))
TEXT = DOCS["PAGE"].read_text(encoding="utf-8")
RESULTS = json.loads(DOCS["RESULTS"].read_text(encoding="utf-8"))


def read_column(text, method):
    """What a page says of a method, as `answers.column` has it."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    place = rows[0].index(method)
    found = {row[0]: row[place] for row in rows[1:-1]}
    return {name: reasons[cell.strip("no []")] if cell.startswith("no ") else cell for name, cell in found.items()}


def test_lsrs_column_is_what_the_probes_find():
    assert read_column(TEXT, "LSR") == answers.column("LSR")


def test_the_page_is_what_is_written_from_the_results():
    assert DOCS["page"](RESULTS) == TEXT, "run: make docs"
    assert {method: read_column(TEXT, method) for method in METHODS} == RESULTS["methods"]


def test_the_command_writes_the_answers_of_every_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "capabilities.json")
    monkeypatch.setattr(answers, "column", lambda method: {"a": answers.HAS, "b": f"{method} cannot"})
    command.main()
    found = json.loads((tmp_path / "capabilities.json").read_text())
    assert found["methods"] == {method: {"a": "yes", "b": f"{method} cannot"} for method in METHODS}
    assert DOCS["page"](found).endswith("4. VeRA cannot\n")
    assert "1 | 1 | 1 | 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such thing. Try another.\nmore"), "no such thing"),
        (KeyError(), "KeyError"),
        (ValueError("word " * 60), f"{'word ' * 23}word ..."),
    ],
)
def test_a_reason_is_one_short_sentence(error, text):
    def probe(subject, folder):
        raise error

    assert answers.answer(probe, None) == text


def test_a_probe_that_passes_is_a_yes():
    assert answers.answer(lambda subject, folder: None, None) == answers.HAS == DOCS["HAS"]


def test_the_documentation_counts_what_the_page_says():
    counts = {method: sum(cell == answers.HAS for cell in read_column(TEXT, method).values()) for method in METHODS}
    said = " ".join((ROOT / "docs/how-to/peft.md").read_text(encoding="utf-8").split())
    for method in METHODS:
        assert re.search(rf"\b{method} (passes )?{counts[method]}\b", said), (method, counts[method])
    assert f"of {len(BEHAVIORS)} rows LSR passes" in said
