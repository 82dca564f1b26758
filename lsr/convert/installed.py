"""Base models in installed packages: found through an entry point, by the name in the adapter's configuration.

A distribution declares which base model a package holds, and a function that returns its folder:

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
        NoBaseError: if such a package is installed, but its function fails or does not return a folder.
    """
    for entry in declared(name, revision):
        if not _is_there(entry):
            continue
        try:
            folder = Path(entry.load()())
        except Exception as error:  # whatever the package's own code raises
            raise NoBaseError(f"base model {name}: entry point {entry.value} failed: {first_line(error)}") from None
        if not folder.is_dir():
            raise NoBaseError(f"base model {name}: entry point {entry.value} names {folder}, which is not a folder")
        return folder
    return None


def missing_package(name: str, revision: str | None) -> str | None:
    """Return the name of a missing package that would provide the model, or None if none is declared."""
    return next((_package(entry) for entry in declared(name, revision) if not _is_there(entry)), None)


def declared(name: str, revision: str | None) -> list[EntryPoint]:
    """Return the entry points for a model; another revision is another model."""
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
