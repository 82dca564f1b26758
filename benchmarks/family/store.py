"""The finished cells, one JSON line each: appended and flushed, so that a killed run loses only what was running."""

import json
import os
from pathlib import Path

from benchmarks.family.measure import Line
from pipeline.errors import UserError


def load(path: Path) -> dict[str, Line]:
    """Return the lines of a file by their keys; none if there is no file. What a killed run left of a line is cut off.

    Raises:
        UserError: if a whole line is no cell; names its number.
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
            raise UserError(f"{path}: line {number} is no cell: delete it, and it is run again") from None
    return found


def append(path: Path, line: Line) -> None:
    """Add a line to a file, which `load` has seen before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
