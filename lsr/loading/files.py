"""The two files of an adapter's folder, read without running any code in them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from lsr.tuner.saved import CONFIG, WEIGHTS, read_fields, read_json, read_weights, weights_of
from lsr.tuner.saved import FACTOR as FACTOR
from lsr.tuner.saved import PREFIX as PREFIX
from lsr.tuner.saved import TASK as TASK
from lsr.tuner.saved import InputError as InputError
from lsr.tuner.saved import adapter_folder as adapter_folder

PICKLES = ("adapter_model.bin", "adapter_model.pt")


class NoBaseError(InputError):
    """The base model does not exist or cannot be loaded."""


def read_config(folder: Path, method: str | None = None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration.

    Raises:
        InputError: if the folder is not an adapter, or not one of the PEFT method given.
    """
    if not (folder / CONFIG).exists():
        missing = f"not an adapter folder, {CONFIG} is missing" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {missing}")
    fields = read_fields(folder / CONFIG)
    if method is not None and fields["peft_type"] != method:
        raise InputError(f"{folder}: an adapter of the method {fields['peft_type']}; needed: {method}")
    return fields


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return an adapter's tensors by their names in the file.

    Raises:
        InputError: if there is no safetensors file, it is cut off or corrupt, or a value is not finite.
    """
    path = weights_of(folder)
    if not path.exists() and (pickled := [name for name in PICKLES if (folder / name).exists()]):
        raise InputError(
            f"{folder / pickled[0]}: a pickle, which can run any code when read, so it is not read; save the adapter "
            f"as {WEIGHTS}"
        )
    return read_weights(path)


def read_task(folder: Path) -> dict[str, Any] | None:
    """Return what the pipeline wrote about an adapter's task into its folder; None if there is no such file.

    Raises:
        InputError: if it is no JSON object, or its labels are no list of names.
    """
    path = folder / TASK
    if not path.exists():
        return None
    task = read_json(path)
    if not isinstance(task, dict):
        raise InputError(f"{path}: must be an object, got {task!r}")
    labels = task.get("labels")
    if not (labels is None or (isinstance(labels, list) and all(isinstance(name, str) for name in labels))):
        raise InputError(f"{path}: labels must be a list of names or null, got {labels!r}")
    return task


def read_labels(folder: Path) -> list[str] | None:
    """Return the label names of an adapter's task; None if there are none.

    Raises:
        InputError: as `read_task`.
    """
    return (read_task(folder) or {}).get("labels")
