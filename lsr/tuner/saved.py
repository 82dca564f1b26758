"""An adapter's two files, read within bounds and checked against the model.

The files are not trusted: they may contain anything. PEFT itself ignores missing and unexpected tensors.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lsr.algebra.rounding import dtype_name, unpack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TASK = "task.json"  # written beside an adapter by the pipeline's stage train
ROUNDED = "adapter_rounded.safetensors"  # in place of WEIGHTS: PEFT would take a file of that name and find no factors
PICKLES = ("adapter_model.bin", "adapter_model.pt")
MOST_BYTES = 8_000_000  # of JSON: enough for the names and hashes of 20,000 layers
PREFIX = "base_model.model."  # PEFT puts it before each tensor's name in the base model
# The name of a factor or core in the file: its layer, and its name in the adapter.
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lsr_adapters\.(factor_[AB]\d+|core)")
# For factors, heads and biases; uint8 for the signs of frames, int64 for counters in modules that are saved whole.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what a terminal interprets as a command or a line break
HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and no text in UTF-8 can
LONGEST_LINE = 276  # characters of a message, before a command's name is prepended


class InputError(ValueError):
    """A mistake that the user can fix: one line that says where, what, and what is allowed.

    Its length is bounded, because it may quote a file that contains anything.
    """

    def __str__(self) -> str:
        line = CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().__str__().replace("\n", " "))
        half = (LONGEST_LINE - 3) // 2
        return line if len(line) <= LONGEST_LINE else f"{line[:half]}...{line[-half:]}"


class NoBaseError(InputError):
    """The base model does not exist or cannot be loaded."""


def adapter_folder(source: str | Path) -> Path:
    """Return the folder of an adapter, or where the files of one in a hub repository have been downloaded to.

    Raises:
        InputError: if there is neither.
    """
    name = str(source)
    if Path(source).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Path(source)
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, ROUNDED, TASK]))
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: no such adapter here, and from the hub: {first_line(error)}") from None


def read_config(folder: Path, method: str | None = None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration.

    Raises:
        InputError: if the folder is not an adapter, or not one of the PEFT method given.
    """
    path = folder / CONFIG
    if not path.exists():
        missing = f"not an adapter folder, {CONFIG} is missing" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {missing}")
    fields = read_json(path)
    if not isinstance(fields, dict) or not isinstance(fields.get("peft_type"), str):
        raise InputError(f"{path}: not an adapter's configuration, it names no peft_type")
    if fields.get("megatron_config") is not None:
        raise InputError(f"{path}: megatron_config: PEFT would import any module that the file names; it is not read")
    for name in ("base_model_name_or_path", "revision", "task_type"):
        if not isinstance(fields.get(name), str | None):
            raise InputError(f"{path}: {name}: must be a string or null, got {fields[name]!r}")
    if method is not None and fields["peft_type"] != method:
        raise InputError(f"{folder}: an adapter of the method {fields['peft_type']}; needed: {method}")
    return fields


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return the contents of a regular JSON file of at most `most` bytes; endless pipes and devices are rejected.

    Raises:
        InputError: if it is not a regular file, is too large, or is not standard JSON; names it.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: a file of over {most:,} bytes; at most that is allowed")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {first_line(error)}") from None


def weights_of(folder: Path) -> Path:
    """Return the path of the tensors of an adapter, which may be rounded; there may be no such file."""
    return folder / (ROUNDED if (folder / ROUNDED).exists() and not (folder / WEIGHTS).exists() else WEIGHTS)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, or of what a file of rounded tensors stands for.

    Raises:
        InputError: if it is not a file, or is truncated or corrupt, or a tensor is not finite or of a dtype that no
            adapter has; names the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        tensors = load_file(path, device="cpu")
        tensors = unpack(tensors) if path.name == ROUNDED else tensors
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # a dtype that torch lacks is a KeyError
        raise InputError(f"{path}: corrupt or cut off: {first_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            needed = ", ".join(map(dtype_name, DTYPES))
            raise InputError(f"{path}: {name} holds values of {dtype_name(tensor.dtype)}; needed: {needed}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    return tensors


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
    are_names = isinstance(labels, list) and all(isinstance(name, str) and not HALVES.search(name) for name in labels)
    if not (labels is None or are_names):
        raise InputError(f"{path}: labels must be a list of names in whole characters, or null, got {labels!r}")
    return task


def labels_of(task: Mapping[str, Any] | None, heads: Mapping[str, Tensor]) -> list[str] | None:
    """Return an adapter's label names, none if it predicts a number: of its task, or as transformers numbers outputs.

    None if there are neither a task nor heads.
    """
    if task is not None:
        return task.get("labels") or []
    outputs = min((len(weight) for weight in heads.values() if weight.dim() == 2), default=None)
    return [f"LABEL_{at}" for at in range(outputs)] * (outputs > 1) if outputs else None


def factors_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the factors and cores in a file by layer and by their names in its adapter, without heads and biases."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := FACTOR.fullmatch(key):
            layers.setdefault(found[1], {})[found[2]] = tensor
    return layers


def check_saved(model: PeftModel, names: Iterable[str]) -> None:
    """Check that a file holds exactly the tensors of a model's adapter, head and biases, for any method.

    PEFT checks their shapes alone.

    Raises:
        ValueError: names the first tensor that is missing or unexpected, or is of whole numbers.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.int64:  # a head's: the model has taken the file's own tensor
            raise ValueError(f"{name.replace('.default', '')} holds int64 values; needed: floating-point ones")
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    # With bias="all" PEFT also lists the biases inside the wrapper of a head.
    expected, held = ({name for name in side if not WRAPPED.search(name)} for side in (state, names))
    for name in sorted(expected ^ held):
        raise ValueError(
            f"{name} {'is missing' if name in expected else 'is no part of this adapter on this base model'}"
        )


def misfit(error: BaseException) -> str:
    """Return a message for PEFT's error on a file that does not fit: a KeyError is a missing tensor of a head."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "a tensor is missing"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is no heading, or the error's type if there is no message."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[1].strip() if len(lines) > 1 and lines[0].endswith(":") else lines[0]  # such as those of torch
