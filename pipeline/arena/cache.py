"""What is computed once for all processes and later runs, and the hashes of files that it depends on."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import content
from pipeline.data.content import Source

FOLDER = Path(".cache/arena")


def cached(name: str, known: tuple[object, ...], write: Callable[[Path], object]) -> Path:
    """Return the file or folder of what `known` determines; `write` makes it at a path if it is not there yet."""
    return artifacts.made_once(FOLDER / f"{name}-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}", write)


def digests(sources: Iterable[Source], pinned: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return the SHA-256 of each local file, by relative name, for each file or folder that the sources name.

    Those of `pinned` files, by path, are taken as they are: the files may be elsewhere.
    """
    paths = [str(path) for source in sources for path in content.named(source)]
    return [{".": pinned[path]} if pinned and path in pinned else _of(path) for path in paths]


def check_pinned(pinned: Mapping[str, str], source: Source) -> None:
    """Check that the files that a source names are those that a preset pins.

    Raises:
        UserError: if one is not.
    """
    for path in map(str, content.named(source)):
        if path in pinned and _of(path) != {".": pinned[path]}:
            raise UserError(f"{path}: not the file of the preset: its SHA-256 must be {pinned[path]}")


@cache  # files do not change meanwhile
def _of(path: str) -> dict[str, str]:
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    return {file.relative_to(path).as_posix(): content.sha256(file) for file in content.files(Path(path))}
