"""SHA-256 hashes of the local files that a row names."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.params.rows import HubModel, PackageModel
from pipeline.params.sources import FilesSource, HubSource, PackageSource, Row

WATCHED = ("data", "models")  # dvc.yaml has them as deps of the stage `inputs`

# A source of a row, or the name of a folder or hub repository.
Source = FilesSource | HubSource | PackageSource | HubModel | PackageModel | str


def named(source: Source) -> Iterator[Path]:
    """Yield local files and folders. A hub repository counts only if a folder has its name or it can only be a path."""
    if isinstance(source, FilesSource):
        yield from map(Path, source.files.values())
    elif isinstance(source, HubSource | HubModel | str):
        path = Path(source if isinstance(source, str) else source.path)
        if path.is_dir() or path.is_absolute() or any(map(path.is_relative_to, (*WATCHED, ".."))):
            yield path


def files(path: Path) -> list[Path]:
    """Return the file itself, or all files in the folder except hidden ones."""
    if not path.is_dir():
        return [path]
    below = (file for file in path.rglob("*") if file.is_file())
    return [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(row: Row) -> str:
    """Return the digest of a row, independent of the order of its keys, as in DVC."""
    content = json.dumps(row.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
