"""Say what the chosen rows name on this disk, by content. Reads params.yaml, the two rows and the files they name.

Writes artifacts/data-files.json, model-files.json and frames-files.json: the SHA-256 of each file, and of the model's
row, which `model` may be in place of naming it. The last is about `lsr.frames` and the rows of `lsr.frames_from`, and
holds these rows too; {} where nothing is named here. The other stages depend on the three and not on all of data/ and
models/: a file that nothing chosen names is nothing to them.
"""

import os
from pathlib import Path

from pipeline import artifacts, console, params, stage
from pipeline.data import content
from pipeline.data.content import WATCHED, Source
from pipeline.errors import UserError
from pipeline.files import check_file


def inputs(source: Source, where: str) -> dict[str, str]:
    """Return the SHA-256 of each file on this disk that a source names; errors begin with `where`.

    Raises:
        UserError: if a file or folder is not there, or is where DVC would not notice that it changes.
    """
    found: dict[str, str] = {}
    for path in content.named(source):
        _check(path, where)
        found |= {file.as_posix(): content.sha256(file) for file in content.files(path)}
    return found


def _check(path: Path, where: str) -> None:
    if not path.exists():
        raise UserError(f"{where}: {path}: not found{_in_the_original(path)}")
    if not path.is_dir():
        check_file(path, where)
    if path.is_absolute():
        console.warn(
            f"{where}: {path}: DVC does not notice when a file outside of the repository changes; a link in "
            "data/ or models/ to the file itself is noticed"
        )
    elif ".." in path.parts or not any(map(path.is_relative_to, WATCHED)):
        raise UserError(f"{where}: {path}: DVC notices changes in data/ and models/ alone; move it there")
    elif linked := [folder for folder in (path, *path.parents) if folder.is_dir() and folder.is_symlink()]:
        raise UserError(f"{where}: {linked[0]}: DVC does not follow a link to a folder; link its files one by one")


def _in_the_original(path: Path) -> str:
    """What to do about a file that the repository has, but not this temporary copy of it."""
    original = os.environ.get("DVC_ROOT", ".")
    if path.is_absolute() or not Path(original, path).exists():
        return "; paths start at the root of the repository"
    copy = "an experiment with --temp or from the queue runs in a copy of what Git tracks"
    return f" here, but in {original}: {copy}; git add {path}, or name it by its absolute path"


def main(view: params.InputsView) -> None:
    where = f"{params.TABLES['data'][0]}: {view.data}"
    data = {file: sha for source in view.dataset.sources for file, sha in inputs(source, where).items()}
    artifacts.write_metrics(artifacts.DATA_FILES, data)
    where = f"{view.base_model.where}: {view.model}"
    model = {where: content.sha256_of(view.base_model)} | inputs(view.base_model.source, where)
    artifacts.write_metrics(artifacts.MODEL_FILES, model)
    artifacts.write_metrics(artifacts.FRAMES_FILES, frames_inputs(view))


def frames_inputs(view: params.InputsView) -> dict[str, str]:
    """Return the SHA-256 of each file of frames and pooled rows, and of each pooled row itself.

    Raises:
        UserError: as `inputs`.
    """
    found = {}
    for name, row in view.pooled.items():
        where = f"{params.TABLES['data'][0]}: {name}"
        found[where] = content.sha256_of(row)
        found |= inputs(row.source, where)
    return found if view.frames == "own" else found | inputs(view.frames, f"{params.PARAMS}: lsr.frames")


if __name__ == "__main__":
    stage.run(main, params.InputsView)
