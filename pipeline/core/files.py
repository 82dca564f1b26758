"""Small files that others may have made: no pipe that never ends, no device behind a link, nothing large."""

from pathlib import Path

from pipeline.core.errors import UserError


def read_small(path: Path, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes.

    Raises:
        UserError: if it is no file, or a larger one.
    """
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: a file of over {most:,} bytes; at most that is allowed")
    return content
