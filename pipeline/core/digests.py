"""SHA-256 digests of files, and those that our own code had when a stage began.

`stages/__init__.py` notes these before a stage imports anything else of ours, so that a stage knows by its end whether
a file has changed since it was imported. Hence no import of a package here: they take time.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CODE = Path(__file__).parents[2]  # the folder of dvc.yaml
PACKAGES = ("lsr", "pipeline", "stages")


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all files in the folder but those that Python has compiled."""
    for file in (path, *path.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            yield file


@cache
def of_code_at_start() -> dict[Path, str]:
    """Return the digest of each file of our code as it was at the first call, which is that of `stages/__init__.py`."""
    digests = {}
    for package in PACKAGES:
        for file in files_below(CODE / package):
            digests[file] = sha256(file)
    return digests
