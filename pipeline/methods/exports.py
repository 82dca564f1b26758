"""Export a trained adapter to standard formats: a plain PEFT LoRA folder, or a plain transformers checkpoint."""

from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lsr.convert.export import export_lora, export_merged
from lsr.loading.base_models import load_model
from lsr.loading.files import InputError
from lsr.tuner.config import LsrConfig
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import pretrained
from pipeline.methods import device
from pipeline.params import PARAMS
from pipeline.params.model_row import ModelRow


def write(form: str, model: PeftModel, folder: Path, row: ModelRow, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model's adapter in a format, "lora" or "merged", deterministically; `model` may be consumed.

    Raises:
        UserError: if it cannot be written in this format.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = pretrained.public_name(row)
    try:
        if form == "lora":
            export_lora(model, folder)
        elif isinstance(config, LsrConfig):
            export_merged(model, folder, tokenizer=tokenizer)
        else:
            _write_merged(model, folder, tokenizer)
    except InputError as error:
        raise UserError(f"{PARAMS}: evaluate.export: {form}: {error}") from None
    except (NotImplementedError, AttributeError):
        kind = config.peft_type
        raise UserError(f"{PARAMS}: evaluate.export: {form}: PEFT cannot merge an adapter of {kind}") from None


def _write_merged(model: PeftModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    # PEFT does this when it unloads, but for most methods not with a head of several layers, such as RoBERTa's.
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.modules_to_save["default"])
    with artifacts.replacing(folder) as new:
        cast("Any", model.merge_and_unload()).save_pretrained(str(new))
        tokenizer.save_pretrained(str(new))


def load_merged(folder: Path) -> nn.Module:
    """Load a checkpoint that `write` has written, the way users without this package would, on the fastest device."""
    return device.place(load_model(AutoModelForSequenceClassification, str(folder)))
