"""The note that the pipeline leaves beside an adapter: its task, such as the names of the labels."""

import re
from pathlib import Path
from typing import Any

from lsr.tuner.files import TASK, read_json
from lsr.tuner.mistakes import InputError

HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and no text in UTF-8 can


def read_task(folder: Path) -> dict[str, Any] | None:
    """Return the note in an adapter's folder; None if there is none.

    Raises:
        InputError: if it is no JSON object, or its labels are no list of names.
    """
    path = folder / TASK
    if not path.exists():
        return None
    task = read_json(path)
    if not isinstance(task, dict):
        raise InputError(f"{path}: must be an object, got {task!r}")
    labels = task.get("labels")
    are_names = isinstance(labels, list) and all(isinstance(name, str) and not HALVES.search(name) for name in labels)
    if not (labels is None or are_names):
        raise InputError(f"{path}: labels must be a list of names in whole characters, or null, got {labels!r}")
    return task
