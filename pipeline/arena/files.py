"""Hashes of files and folders named in rows: read once per process, because they do not change meanwhile."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.data import content
from pipeline.data.content import Source


def digests(sources: Iterable[Source]) -> list[dict[str, str]]:
    """Return the SHA-256 of each local file, by relative name, for each file or folder that the sources name.

    Raises:
        UserError: if one does not exist.
    """
    return [_of(str(path)) for source in sources for path in content.named(source)]


@cache
def _of(path: str) -> dict[str, str]:
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    return {file.relative_to(path).as_posix(): content.sha256(file) for file in content.files(Path(path))}
