"""The notebook of examples/ runs, and is committed as a run has left it."""

import json
import re
import runpy

import nbformat
import pytest

from tests.workspace import ROOT

DOCS = runpy.run_path(str(ROOT / "docs/notebook.py"))
COMMITTED = nbformat.read(DOCS["NOTEBOOK"], as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def said(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def form(cell):
    """What a cell prints without what may differ by machine: decimals, and the answers of the model."""
    return re.sub(r"\d+\.\d+|(positive|negative) +(right|wrong)", "", said(cell))


@pytest.mark.nightly
def test_every_cell_runs_without_a_warning():
    run = DOCS["execute"](DOCS["NOTEBOOK"])
    assert [output for output in outputs(run) if output.get("name") == "stderr"] == []
    assert [form(cell) for cell in code(run)] == [form(cell) for cell in code(COMMITTED)]
    assert run.metadata == COMMITTED.metadata


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", json.dumps([cell.source for cell in COMMITTED.cells]))
    assert links
    assert all((DOCS["NOTEBOOK"].parent / link).is_file() for link in links)
