"""Open a trained adapter of any method from its folder, on the base model that it names."""

from collections.abc import Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsr.convert import loading
from lsr.convert.base_model import load_base, load_tokenizer
from lsr.convert.files import InputError, read_config, read_tensors
from pipeline.core.errors import UserError
from pipeline.methods import adapters, device, table
from pipeline.methods.base_models import check_positions, check_tokens, installed_folder, pad
from pipeline.params import TABLES
from pipeline.predict.places import here_or_in_the_repository

MODELS = TABLES["model"][0]
MAX_LENGTH = "--max-length"


def open_adapter(folder: Path, base: str | None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return a trained adapter of any method on the base model that it names, and the tokenizer.

    `base` is a folder or hub repository that overrides the named one. If a row of pipeline/models.yaml has the named
    model in an installed package, it is loaded from there. The model is in evaluation mode, on the fastest device.

    Raises:
        UserError: if the folder is not such an adapter, or its base model or tokenizer is missing or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        fields = read_config(folder)
        name = base or place_of(str(fields.get("base_model_name_or_path")))
        model, tokenizer = _load(folder, fields, name), load_tokenizer(folder, name)
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


def place_of(name: str) -> str | None:
    """Return the local path of a named base model, in an installed package or the repository; None for the hub."""
    if (folder := installed_folder(name, here_or_in_the_repository(MODELS))) is not None:
        return folder
    place = here_or_in_the_repository(Path(name))
    return str(place) if place.is_dir() else None


def _load(folder: Path, fields: Mapping[str, Any], base: str | None) -> PeftModel:
    method, known = fields["peft_type"], table.peft_types()
    if method not in known:
        raise InputError(f"{folder}: an adapter of the method {method}; needed: {' or '.join(sorted(known))}")
    if method == loading.METHOD:  # its errors are more specific
        return loading.load_adapter(folder, base)
    model = load_base(fields, read_tensors(folder), base).float()
    return adapters.load_adapter(model, folder, trainable=False).float().eval()
