"""SHA-256 digests of files, and of our own code as it was when a stage began.

`stages/__init__.py` computes the digests of the code before a stage imports it, so that the stage can find at its end
whether a file has changed since. Hence this module imports no package: that takes time.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CODE = Path(__file__).parents[2]  # the folder of dvc.yaml
PACKAGES = ("lsr", "lsr_onnx", "pipeline", "stages")


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all files in the folder except Python's compiled ones."""
    for file in (path, *path.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            yield file


@cache
def of_code_at_start() -> dict[Path, str]:
    """Return the digests of our code at the time of the first call, by `stages/__init__.py`."""
    digests = {}
    for package in PACKAGES:
        for file in files_below(CODE / package):
            digests[file] = sha256(file)
    return digests
