"""Hash the local files that the chosen rows name. Reads params.yaml, the two rows and these files.

Writes artifacts/data-files.json, model-files.json and frames-files.json: the SHA-256 of each file, and of the model's
row, because `model` may be a whole row instead of a name. The last one is for `lsr.frames` and the rows of
`lsr.frames_from`, which it hashes too. Each is {} if no local file is named. The other stages depend on these three
files instead of all of data/ and models/, so files that are not chosen do not affect them.
"""

import os
from pathlib import Path

from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.core.files import check_file
from pipeline.data import content
from pipeline.data.content import WATCHED, Source


def inputs(source: Source, where: str) -> dict[str, str]:
    """Return the SHA-256 of each local file that a source names; error messages begin with `where`.

    Raises:
        UserError: if a file or folder does not exist, or is where DVC would not notice changes.
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
            f"{where}: {path}: DVC does not notice changes of files outside of the repository, unless there is "
            "a link to the file itself in data/ or models/"
        )
    elif ".." in path.parts or not any(map(path.is_relative_to, WATCHED)):
        raise UserError(f"{where}: {path}: DVC notices changes only in data/ and models/; move it there")
    elif linked := [folder for folder in (path, *path.parents) if folder.is_dir() and folder.is_symlink()]:
        raise UserError(f"{where}: {linked[0]}: DVC does not follow a link to a folder; link its files one by one")


def _in_the_original(path: Path) -> str:
    """Return advice, also for a file that is in the repository but not in this temporary copy of it."""
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
    # A folder that `model` itself names is the path that messages name anyway.
    place = view.base_model.where if Path(view.model) in content.named(view.base_model.source) else where
    model = {where: content.sha256_of(view.base_model)} | inputs(view.base_model.source, place)
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
