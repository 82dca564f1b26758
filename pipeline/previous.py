"""`python -m pipeline.previous`: restore the last trained adapter, for use until a new training run replaces it.

DVC removes the outputs of a stage before it runs. This restores artifacts/adapter and artifacts/bank from DVC's cache
as dvc.lock records them. It is the first command of the stage train in dvc.yaml, which replaces them at its end.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsr_onnx.notes import PREVIOUS, previous_run
from pipeline.core import artifacts, console, git
from pipeline.core.console import Parser
from pipeline.core.dvc import run_dvc
from pipeline.core.errors import UserError
from pipeline.params.yaml_file import read_yaml

LOCK = Path("dvc.lock")
OUTPUTS = (artifacts.ADAPTER, artifacts.BANK)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(
        "python -m pipeline.previous",
        "Restore the last trained adapter and bank from DVC's cache after DVC has removed them, so that they can be "
        "used until a new training run replaces them. The stage train does this first.",
    )
    with parser.parse(arguments):
        restore()


def restore() -> None:
    """Restore adapter and bank of the last finished training run, each with a note that names the run.

    Nothing happens if they exist, if DVC's cache does not have them, or in a temporary copy.
    """
    is_there = any(path.exists() for path in OUTPUTS)
    if is_there or artifacts.is_temporary_copy() or not LOCK.is_file():
        return
    train = read_yaml(LOCK).get("stages", {}).get("train")
    cache = _cache()
    if train is None or cache is None:
        return
    hashes = {}
    for out in train.get("outs", []):
        hashes[out["path"]] = out.get("md5")
    adapter = hashes.get(str(artifacts.ADAPTER))
    if adapter is None:
        return
    note = f"{_origin(train, adapter)}\n"
    for path in OUTPUTS:
        files = _list_files(cache, hashes.get(str(path)))
        if files:
            try:
                _put(path, cache, files, note)
            except (OSError, UserError) as error:  # training needs none of it
                console.warn(f"{path}: not put back: {error}")


def print_note_of(folder: Path) -> None:
    """Print the note of an adapter or bank, if it was restored."""
    note = previous_run(folder)
    if note:
        console.note(f"{folder}: {note}")


def _put(path: Path, cache: Path, files: dict[str, str], note: str) -> None:
    with artifacts.replace_atomically(path) as folder:
        folder.mkdir()
        for name, md5 in files.items():
            _copy(_locate_in_cache(cache, md5), folder / name, md5)
        (folder / PREVIOUS).write_text(note, encoding="utf-8")


def _cache() -> Path | None:
    """Return DVC's cache; None if DVC does not report it."""
    run = run_dvc("cache", "dir")
    return Path(run.stdout.strip()) if run.returncode == 0 else None


def _locate_in_cache(cache: Path, md5: str) -> Path:
    return cache.joinpath("files", "md5", md5[:2], md5[2:])


def _list_files(cache: Path, md5: str | None) -> dict[str, str]:
    """Return the MD5 hashes of a folder's files by relative path; empty if the cache lacks one."""
    if md5 is None or not _locate_in_cache(cache, md5).is_file():
        return {}
    files = {}
    for entry in json.loads(_locate_in_cache(cache, md5).read_text(encoding="utf-8")):
        if not _locate_in_cache(cache, entry["md5"]).is_file():
            return {}
        files[entry["relpath"]] = entry["md5"]
    return files


def _copy(source: Path, target: Path, md5: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        actual = hashlib.file_digest(file, "md5").hexdigest()
    if actual != md5:
        raise OSError(f"{source}: damaged: its MD5 hash is {actual}")


def _origin(train: dict[str, Any], md5: str) -> str:
    """Return a line that names the run of the adapter with this MD5 hash, according to dvc.lock."""
    values = train.get("params", {}).get("params.yaml", {})
    run = f"{values.get('adapter')} on {values.get('model')}, {values.get('data')}, seed {values.get('seed')}"
    return f"from the last finished training run: {run}, {_commit(md5)}; a later run has begun and not replaced it yet"


def _commit(md5: str) -> str:
    if md5.encode() not in (git.read_committed(LOCK) or b""):
        return "not committed"
    shown = "--format=commit %h of %cs"
    commit = git.output("log", "-1", shown, f"-S{md5}", "--", str(LOCK)) or b""
    return commit.decode().strip()


if __name__ == "__main__":
    main()
