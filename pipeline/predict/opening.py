"""A trained adapter of any method from its folder, beside the base model that it names."""

from logging import ERROR, getLogger
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lsr.convert import loading
from lsr.convert.base_model import load_tokenizer
from lsr.convert.files import InputError, read_config
from pipeline.errors import UserError
from pipeline.methods.base_models import installed_folder


def open_adapter(folder: Path, base: str | None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return a trained adapter, of LSR or LoRA or none, beside the base model that it names, and the tokenizer.

    `base` is a folder or hub repository instead of the named one. A named one that a row of pipeline/models.yaml has
    as an installed package is taken from there.

    Raises:
        UserError: if the folder is no such adapter, or its base model or tokenizer is not there or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # that it tries again, when there is no connection
    try:
        fields = read_config(folder)
        name = base or installed_folder(str(fields.get("base_model_name_or_path")))
        load = loading.load_adapter if fields["peft_type"] == loading.METHOD else loading.load_lora
        model, tokenizer = load(folder, name), load_tokenizer(folder, name)
    except InputError as error:
        raise UserError(str(error)) from None
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    return model, tokenizer
