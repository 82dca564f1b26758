"""The note in the folder of an adapter or bank that a training run is about to replace: the run that it is from."""

from pathlib import Path

from lsr_onnx.errors import LONGEST_LINE, escape

PREVIOUS = ".previous-run"  # the file with the note, one line


def previous_run(folder: Path) -> str | None:
    """Return the line that names the run of an adapter or bank; None for any that no training run is to replace."""
    path = folder / PREVIOUS
    if not path.is_file():  # a pipe would never end
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return escape(file.readline(LONGEST_LINE).strip())
