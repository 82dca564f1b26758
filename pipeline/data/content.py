"""Find the local files of an entry or a section, check their location, and hash them by SHA-256."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from pipeline.core import console
from pipeline.core.digests import sha256
from pipeline.core.errors import UserError
from pipeline.params.sources import GgufModel, HubModel, PackageModel, PackageSource, StrictModel, TableSource

MODELS = "models"  # dvc.yaml has it as a dep of the stages `tokenize` and `factorize-init`,
WATCHED = ("data", MODELS)  # folders of users, both deps of `tokenize`

# A source of an entry, or the name of a folder or hub repository.
Source = TableSource | PackageSource | HubModel | PackageModel | GgufModel | str


def iter_local_paths(source: Source) -> Iterator[Path]:
    """Yield local files and folders; a hub repository counts if a folder has its name, or it can only be a path."""
    if isinstance(source, TableSource) and source.kind == "files":
        yield from map(Path, source.files.values())
    elif isinstance(source, TableSource | HubModel | str):
        name = source if isinstance(source, str) else str(source.path)
        path = Path(name)
        if path.is_dir() or _can_only_be_path(path):
            yield path


def _can_only_be_path(path: Path) -> bool:
    if path.is_absolute():
        return True
    return any(path.is_relative_to(folder) for folder in (*WATCHED, ".."))


def files(path: Path) -> list[Path]:
    """Return the file itself, or all files in the folder except hidden ones."""
    if not path.is_dir():
        return [path]
    shown = []
    for file in path.rglob("*"):
        parts = file.relative_to(path).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if file.is_file() and not is_hidden:
            shown.append(file)
    return shown


def sha256_of(entry: StrictModel) -> str:
    """Return the SHA-256 of an entry as JSON with sorted keys, as DVC compares values."""
    keys = entry.model_dump(mode="json")
    content = json.dumps(keys, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def digests(source: Source, where: str) -> dict[str, str]:
    """Return the digest of each local file of a source, with the errors of `local`, which begin with `where`."""
    named_files = chain.from_iterable(map(files, local(source, where)))
    return {file.as_posix(): sha256(file) for file in named_files}


def local(
    source: Source,
    where: str,
    watched: Sequence[str] = WATCHED,
) -> list[Path]:
    """Return the local files and folders of a source; they must be in the folders `watched`, which DVC tracks.

    Raises:
        UserError: if one does not exist, or is where DVC would not notice changes.
    """
    paths = list(iter_local_paths(source))
    for path in paths:
        if not path.exists():
            copies = "whose temporary copies have only what was added with `git add`"
            raise UserError(f"{where}: {path}: not found; paths start at the root of the repository, {copies}")
        if "DVC_STAGE" not in os.environ:
            continue  # nothing is skipped, so nothing can be out of date
        if path.is_absolute():
            console.warn(f"{where}: {path}: DVC does not notice changes of files outside of the repository")
            continue
        is_watched = any(path.is_relative_to(folder) for folder in watched)
        if ".." in path.parts or not is_watched:
            folders = " and ".join(f"{folder}/" for folder in watched)
            raise UserError(f"{where}: {path}: DVC notices changes only in {folders}; move it there")
        for folder in (path, *path.parents):
            if folder.is_dir() and folder.is_symlink():
                raise UserError(f"{where}: {folder}: DVC does not follow a link to a folder; link its files one by one")
    return paths
