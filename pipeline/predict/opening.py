"""Open a trained adapter of any method from its folder, on the base model that it names."""

from collections.abc import Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import load_tokenizer
from lsr.loading.files import InputError, read_config
from pipeline.core.errors import UserError
from pipeline.data.pretrained import check_tokens, pad
from pipeline.methods import device, table
from pipeline.methods.base_models import check_positions
from pipeline.predict.places import here_or_in_the_repository

MAX_LENGTH = "--max-length"


def open_adapter(folder: Path, base: str | None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return a trained adapter of any method on the base model that it names, and the tokenizer.

    `base` is a folder or hub repository that overrides the named one. The model is in evaluation mode, on the fastest
    device.

    Raises:
        UserError: if the folder is not such an adapter, or its base model or tokenizer is missing or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        fields = read_config(folder)
        if fields["peft_type"] not in (known := table.known_types()):
            raise UserError(
                f"{folder}: an adapter of the method {fields['peft_type']}; needed: {' or '.join(sorted(known))}"
            )
        base = base or base_in_repository(fields)
        model, tokenizer = load_adapter(folder, base, method=None), load_tokenizer(fields, folder, base)
    except InputError as error:
        raise UserError(str(error)) from None
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    pad(tokenizer, str(folder), cast("PreTrainedModel", model.get_base_model()))
    return device.place(model), tokenizer


def check_length(length: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, pairs: bool) -> None:
    """Refuse a maximum length that leaves no room for a text between the special tokens, or is above the model's.

    Raises:
        UserError: if it is too short or too long.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if length <= special:
        raise UserError(
            f"{MAX_LENGTH}: must be at least {special + 1}, because {special} tokens are special ones, got {length}"
        )
    check_tokens(tokenizer, length, MAX_LENGTH)
    check_positions(model, length, MAX_LENGTH)


def base_in_repository(fields: Mapping[str, Any]) -> str | None:
    """Return the folder of an adapter's base model if its name is a path in the repository; None for any other."""
    place = here_or_in_the_repository(Path(str(fields.get("base_model_name_or_path"))))
    return str(place) if place.is_dir() else None
