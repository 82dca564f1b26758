"""Read the two untrusted files of an adapter, its configuration and its tensors, within limits."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lsr.errors import HALVES, InputError, wrap_errors
from lsr.tuner.options import check_patterns
from lsr.tuner.packing import Tensors, dtype_name, unpack
from lsr_onnx.folder import DEEPEST, is_deeper

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TASK = "task.json"  # written next to an adapter by the pipeline's stage train
ROUNDED = "adapter_rounded.safetensors"  # replaces WEIGHTS: PEFT would open a file of that name and find no factors
# Of a tokenizer in an adapter's folder: its vocabulary, one of these; and what goes with it, if it is there.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
WITH_VOCABULARY = ("*token*.json", "merges.txt", "chat_template.jinja", "chat_template.json")
# Parts that PEFT adds to the names of fully trained modules.
WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")
PICKLES = ("adapter_model.bin", "adapter_model.pt")
MAX_BYTES = 8_000_000  # limit to a JSON file: enough for the names and hashes of 20,000 layers
PREFIX = "base_model.model."  # PEFT puts it before each tensor's name in the base model
# The name of a factor or core in the file: its layer, and its name in the adapter.
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lsr_adapters\.(factor_[AB]\d+|core)")
# For factors, heads and biases; int64 for counters in modules that are saved whole, uint8 for the codes of a bank.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)


class Files(NamedTuple):
    """The contents of an adapter's two files, read once."""

    folder: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]  # tensors by their names in the file

    @property
    def method(self) -> str:
        """PEFT's name of the method."""
        return self.fields["peft_type"]


def read_files(folder: str | Path | Files, method: str | None = None) -> Files:
    """Read an adapter's folder, with the errors of `read_config` and `read_weights`; `Files` are returned unchanged."""
    if isinstance(folder, Files):
        return folder
    folder = Path(folder)
    return Files(folder, read_config(folder, method), read_weights(weights_of(folder)))


def adapter_folder(source: str | Path) -> Path:
    """Return an adapter's folder; a hub repository is downloaded first.

    Raises:
        InputError: if it is neither a folder nor a repository.
    """
    name = str(source)
    if Path(source).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Path(source)
    with wrap_errors(f"{name}: no such adapter here, and from the hub", OSError, ValueError):
        return Path(
            snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, ROUNDED, TASK, *VOCABULARIES, *WITH_VOCABULARY])
        )


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of the tokenizer in a folder, ordered by name; empty if it has no vocabulary."""
    vocabularies = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    if not vocabularies:
        return []
    others = (path for pattern in WITH_VOCABULARY for path in folder.glob(pattern) if path.is_file())
    return sorted({*vocabularies, *others})


def read_config(folder: Path, method: str | None = None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration.

    Raises:
        InputError: if the folder is not an adapter of the given PEFT method, or has a pattern that could take long to
            match.
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
    with wrap_errors(path, ValueError):
        check_patterns(fields)
    if method is not None and fields["peft_type"] != method:
        raise InputError(f"{folder}: an adapter of the method {fields['peft_type']}; needed: {method}")
    return fields


def read_json(path: Path) -> Any:
    """Return the contents of a regular JSON file of at most MAX_BYTES; endless pipes and devices are rejected.

    Raises:
        InputError: if it is not a regular file, is too large or too deeply nested, or is not standard JSON without lone
            surrogates; names it.
    """
    _check_is_file(path)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: a file of over {MAX_BYTES:,} bytes; at most that is allowed")
    return parse_json(content, path)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        problem = "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {problem}")


def parse_json(content: bytes, where: object, deepest: int = DEEPEST) -> Any:
    """Return the value of a JSON text in UTF-8, nested at most `deepest` levels deep.

    Raises:
        InputError: if it is nested too deeply, or is not standard JSON without lone surrogates; begins with `where`.
    """
    with wrap_errors(f"{where}: not valid JSON", ValueError, RecursionError):
        value = json.loads(content.decode("utf-8"))
        if HALVES.search(json.dumps(value, ensure_ascii=False)):
            raise InputError("it contains a lone surrogate (invalid Unicode)")
    if is_deeper(value, deepest):
        raise InputError(f"{where}: more than {deepest} values within one another; at most that is allowed")
    return value


def weights_of(folder: Path) -> Path:
    """Return the path of an adapter's tensors, quantized or not; the file may not exist."""
    usual = folder / WEIGHTS
    rounded = folder / ROUNDED
    if rounded.exists() and not usual.exists():
        return rounded
    return usual


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; those of a quantized file are dequantized to float32.

    Raises:
        InputError: if it is not a file, or is truncated or corrupt, or a tensor is empty, not finite or of an
            unsupported dtype; names the file.
    """
    if not path.exists():
        for pickled in map(path.with_name, PICKLES):
            if pickled.exists():
                reason = "a pickle, which can execute arbitrary code, so it is not loaded"
                raise InputError(f"{pickled}: {reason}; save the adapter as {WEIGHTS}")
    _check_is_file(path)
    # An unknown dtype is a KeyError.
    with wrap_errors(f"{path}: corrupt or cut off", SafetensorError, OSError, ValueError, KeyError):
        tensors = load_file(path, device="cpu")
        tensors = unpack(tensors) if path.name == ROUNDED else tensors
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            needed = ", ".join(map(dtype_name, DTYPES))
            raise InputError(f"{path}: {name} holds values of {dtype_name(tensor.dtype)}; needed: {needed}")
        if tensor.numel() == 0:
            raise InputError(f"{path}: {name} has no entries")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    return tensors


def factors_by_layer(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Return the factors and cores in a file, without heads and biases, by layer and by name."""
    layers = defaultdict[str, dict[str, Tensor]](dict)
    for key, tensor in tensors.items():
        match = FACTOR.fullmatch(key)
        if match:
            layers[match[1]][match[2]] = tensor
    return dict(layers)
