"""Execute the notebook of examples/ and write it with its outputs: python -m docs.notebook.

What would differ at every run is left out: times, and the version of Python.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from pipeline.core.console import Parser

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
PATIENCE = 600  # seconds a cell: all of them together take about 15, and many times that on a busy machine


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook after a run in a fresh kernel, which has this repository's packages and no model hub.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails; names it, and what it raised.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=PATIENCE, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    about = "Run examples/quickstart.ipynb and save it with its outputs, without times and versions."
    with Parser("python -m docs.notebook", about).parse():
        nbformat.write(execute(NOTEBOOK), NOTEBOOK)
