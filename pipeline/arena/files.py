"""The content of files and folders that rows name: read once by each process, as nobody changes them meanwhile."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.data import content
from pipeline.data.content import Source
from pipeline.errors import UserError


def digests(sources: Iterable[Source]) -> list[dict[str, str]]:
    """Return the SHA-256 of each file on this disk that sources name, by its name in what is named.

    Raises:
        UserError: if there is none.
    """
    return [_of(str(path)) for source in sources for path in content.named(source)]


@cache
def _of(path: str) -> dict[str, str]:
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    return {file.relative_to(path).as_posix(): content.sha256(file) for file in content.files(Path(path))}
