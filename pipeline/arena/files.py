"""Hashes of files and folders named in rows: read once per process, because they do not change meanwhile."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.data import content
from pipeline.data.content import Source


def digests(sources: Iterable[Source], pinned: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return the SHA-256 of each local file, by relative name, for each file or folder that the sources name.

    Those of `pinned` files, by path, are taken as they are: the files may be elsewhere.

    Raises:
        UserError: if one does not exist.
    """
    paths = [str(path) for source in sources for path in content.named(source)]
    return [{".": pinned[path]} if pinned and path in pinned else _of(path) for path in paths]


def check_pinned(pinned: Mapping[str, str], sources: Iterable[Source]) -> None:
    """Check that the files that sources name are those that a preset pins.

    Raises:
        UserError: if one is not.
    """
    for path in (str(path) for source in sources for path in content.named(source)):
        if path in pinned and _of(path) != {".": pinned[path]}:
            raise UserError(f"{path}: not the file of the preset: its SHA-256 must be {pinned[path]}")


@cache
def _of(path: str) -> dict[str, str]:
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    return {file.relative_to(path).as_posix(): content.sha256(file) for file in content.files(Path(path))}
