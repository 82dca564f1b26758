"""The finished cells, one JSON line each, appended when done: a killed run loses only the cells in progress."""

import json
import os
from pathlib import Path

from benchmarks.family.measure import Line
from pipeline.core.errors import UserError


def load(path: Path) -> dict[str, Line]:
    """Return the lines of a file by key; none if there is no file. A partial last line of a killed run is removed.

    Raises:
        UserError: if a complete line is not a cell; names its number.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    found = {}
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            found[line["key"]] = line
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: line {number} is not a cell: delete it, and the cell is run again") from None
    return found


def append(path: Path, line: Line) -> None:
    """Append a line to a file that `load` has read before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
