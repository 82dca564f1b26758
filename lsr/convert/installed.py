"""Base models in installed packages: found by the name that an adapter has for them, through an entry point.

A distribution declares which base model a package holds, and what returns its folder:

    [project.entry-points."lsr.base_models"]
    "OWNER/NAME@REVISION" = "package:function"
"""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from lsr.convert.files import NoBaseError
from lsr.tuner.saved import first_line

GROUP = "lsr.base_models"


def installed_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of the installed package that holds a hub repository's model, or None if none does.

    Raises:
        NoBaseError: if such a package is installed, but does not say where the model is.
    """
    for entry in declared(name, revision):
        if not _is_there(entry):
            continue
        try:
            folder = Path(entry.load()())
        except Exception as error:  # whatever the package's own code raises
            raise NoBaseError(f"base model {name}: entry point {entry.value} failed: {first_line(error)}") from None
        if not folder.is_dir():
            raise NoBaseError(f"base model {name}: entry point {entry.value} names {folder}, which is no folder")
        return folder
    return None


def missing_package(name: str, revision: str | None) -> str | None:
    """Return the name of a package that holds the model once it is installed, or None if none is declared."""
    return next((_package(entry) for entry in declared(name, revision) if not _is_there(entry)), None)


def declared(name: str, revision: str | None) -> list[EntryPoint]:
    """Return the entry points for a model; those of another revision are for another model."""
    found = []
    for entry in entry_points(group=GROUP):
        declared_name, _, declared_revision = entry.name.partition("@")
        if declared_name == name and revision in (None, declared_revision):
            found.append(entry)
    return found


def _is_there(entry: EntryPoint) -> bool:
    return find_spec(_package(entry)) is not None


def _package(entry: EntryPoint) -> str:
    return entry.module.partition(".")[0]
