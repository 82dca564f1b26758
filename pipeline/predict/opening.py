"""Open a trained adapter of any method, or a bank of many, on the base model that it names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import load_tokenizer
from lsr.loading.files import InputError, read_config
from lsr.serve.opening import open_bank, read_notes
from pipeline.core.errors import UserError
from pipeline.data.pretrained import check_tokens, pad
from pipeline.methods import device, table
from pipeline.methods.base_models import check_positions

MAX_LENGTH = "--max-length"


class Opened(NamedTuple):
    """A model with one adapter or many, in evaluation mode on the fastest device, its base model and its tokenizer."""

    model: Any
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def open_adapter(folder: Path, base: str | None) -> Opened:
    """Return a trained adapter on the base model that it names, or on `base`, a folder or hub repository.

    Raises:
        UserError: if the folder is not such an adapter, or its base model or tokenizer is missing or does not fit.
    """
    with _in_plain_words():
        fields = read_config(folder)
        if fields["peft_type"] not in (known := table.known_types()):
            method = fields["peft_type"]
            raise UserError(f"{folder}: an adapter of the method {method}; needed: {' or '.join(sorted(known))}")
        model = load_adapter(folder, base, method=None)
        return _opened(model, cast("PreTrainedModel", model.get_base_model()), fields, folder, base)


def open_adapters(folder: Path, base: str | None) -> Opened:
    """Return a bank of adapters, on the base model that they name, or on `base`.

    Raises:
        UserError: if the folder holds no adapters, or their base model or tokenizer is missing or does not fit.
    """
    with _in_plain_words():
        bank, (fields, _) = open_bank(folder, base), read_notes(folder)
        return _opened(bank, cast("PreTrainedModel", bank.model), fields, folder, base)


def notes(folder: Path) -> dict[str, Any]:
    """Return what task.json held of each adapter of a bank.

    Raises:
        UserError: if the folder holds no adapters.
    """
    with _in_plain_words():
        return read_notes(folder)[1]


def check_length(length: int, opened: Opened, *, pairs: bool) -> None:
    """Refuse a maximum length that leaves no room for a text between the special tokens, or is above the model's.

    Raises:
        UserError: if it is too short or too long.
    """
    special = opened.tokenizer.num_special_tokens_to_add(pair=pairs)
    if length <= special:
        raise UserError(
            f"{MAX_LENGTH}: must be at least {special + 1}, because {special} tokens are special ones, got {length}"
        )
    check_tokens(opened.tokenizer, length, MAX_LENGTH)
    check_positions(opened.base, length, MAX_LENGTH)


def _opened(
    model: Any, base_model: PreTrainedModel, fields: Mapping[str, Any], folder: Path, base: str | None
) -> Opened:
    tokenizer = load_tokenizer(fields, folder, base)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    pad(tokenizer, str(folder), base_model)
    return Opened(device.place(model), base_model, tokenizer)


@contextmanager
def _in_plain_words() -> Iterator[None]:
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from None
