"""Files that users name: no pipe that never ends and no device behind a link, and small ones where all is read."""

from pathlib import Path

from pipeline.core.errors import UserError


def check_file(path: Path, where: str = "") -> None:
    """Check that what is there, if anything is, is a file; errors begin with `where`.

    Raises:
        UserError: if it is something else.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{where and f'{where}: '}{path}: not a file")


def read_small(path: Path, most: int) -> bytes:
    """Return what a file of at most `most` bytes holds.

    Raises:
        UserError: if it is no file, or a larger one; OSError, if it is not there or cannot be read.
    """
    check_file(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: a file of over {most:,} bytes; at most that is allowed")
    return content
