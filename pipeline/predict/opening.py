"""Open a trained adapter of any method, or a bank of many, on the base model that it names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import load_tokenizer
from lsr.loading.files import InputError, read_config
from lsr.serve.file import read_index
from lsr.serve.opening import open_bank
from pipeline.core.errors import UserError
from pipeline.data.pretrained import pad
from pipeline.methods import device, table

# A model with one adapter or many, in evaluation mode on the fastest device, and its tokenizer.
Opened = tuple[Any, PreTrainedTokenizerBase]


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Turn what `lsr` says of an adapter into a mistake of the command, without what the hub's client says before it.

    Raises:
        UserError: in place of InputError.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from None


@in_plain_words()
def open_adapter(folder: Path, base: str | None) -> Opened:
    """Return a trained adapter on the base model that it names, or on `base`, a folder or hub repository.

    Raises:
        UserError: if the folder is not such an adapter, or its base model or tokenizer is missing or does not fit.
    """
    fields = read_config(folder)
    if (method := fields["peft_type"]) not in (known := table.known_types()):
        raise UserError(f"{folder}: an adapter of the method {method}; needed: {' or '.join(sorted(known))}")
    model = load_adapter(folder, base, method=None)
    return _opened(model, model.get_base_model(), fields, folder, base)


@in_plain_words()
def open_adapters(folder: Path, base: str | None) -> Opened:
    """Return a bank of adapters, on the base model that they name, or on `base`.

    Raises:
        UserError: if the folder holds no bank, or their base model or tokenizer is missing or does not fit.
    """
    bank = open_bank(folder, base)
    return _opened(bank, bank.model, read_index(folder).base, folder, base)


def _opened(model: Any, base_model: Any, fields: Mapping[str, Any], folder: Path, base: str | None) -> Opened:
    tokenizer = load_tokenizer(fields, folder, base)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    pad(tokenizer, str(folder), base_model)
    return device.place(model), tokenizer
