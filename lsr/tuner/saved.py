"""An adapter's two files, read within bounds, and compared with what its model has.

Whoever wrote them can have written anything. PEFT skips what is missing and what is too much.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lsr.algebra.precision import dtype_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_BYTES = 8_000_000  # of JSON: with names and hashes of 20,000 layers
# Of factors, heads and biases; int8 and uint8 of rounded frames, int64 of what counts in modules that are saved whole.
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int8, torch.uint8, torch.int64),
)


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields of an adapter's configuration, of any method.

    Raises:
        ValueError: if it is none; names it.
    """
    fields = read_json(path)
    if not isinstance(fields, dict) or not isinstance(fields.get("peft_type"), str):
        raise ValueError(f"{path}: not an adapter's configuration, it names no peft_type")
    return fields


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file of at most `most` bytes says: no pipe that never ends, and no device behind a link.

    Raises:
        ValueError: if it is no file, too large, or no JSON as the standard has it; names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: a file of over {most:,} bytes; at most that is allowed")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{path}: no valid JSON: too deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: no valid JSON: {first_line(error)}") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names there.

    Raises:
        ValueError: if it is no file, cut off or corrupt, a tensor is empty or of a dtype that no adapter has, or a
            value is not finite; names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        tensors = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # a dtype that torch lacks is a KeyError
        raise ValueError(f"{path}: corrupt or cut off: {first_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.numel():
            held = "no values" if not tensor.numel() else f"values of {dtype_name(tensor.dtype)}"
            raise ValueError(f"{path}: {name} holds {held}; needed: {', '.join(map(dtype_name, DTYPES))}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
    return tensors


def check_saved(model: PeftModel, found: Mapping[str, Sequence[int]]) -> None:
    """Check that a file holds the tensors of a model's adapter of any method, its head and biases, and no others.

    `found` are the shapes of the file's tensors by their names there. A model that takes the file's own tensors has
    whatever shapes these have, so what differs there has been refused by PEFT.

    Raises:
        ValueError: names the first tensor that is missing, is too much, or has another shape.
    """
    expected: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(
            f"{name} {'is missing' if name in expected else 'is no part of this adapter on this base model'}"
        )
    for name, tensor in expected.items():
        if tuple(tensor.shape) != tuple(found[name]):
            raise ValueError(
                f"{name} is {tuple(found[name])}, and the adapter's configuration says {tuple(tensor.shape)}"
            )


def misfit(error: BaseException) -> str:
    """Return what PEFT says when it loads a file that does not fit: a KeyError is a head's tensor that is missing."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "a tensor is missing"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
