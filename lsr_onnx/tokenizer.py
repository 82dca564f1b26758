"""Open the tokenizer.json in a folder of graphs, with the package tokenizers alone."""

from pathlib import Path
from typing import Any

from lsr_onnx.errors import InputError, wrap_errors


def open_tokenizer(path: Path) -> Any:
    """Load the tokenizer in a file, which pads batches.

    Raises:
        InputError: if the package is missing, or the file is invalid or does not pad.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(f"{path}: needs tokenizers, which is not installed; pip install tokenizers") from None
    with wrap_errors(path, Exception):  # errors of the package have no class of their own
        tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.padding is None:
        raise InputError(f"{path}: does not pad; export the adapter again: lsr export --to onnx")
    return tokenizer
