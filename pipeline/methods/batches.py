"""Batches for a model: its tokenizer pads them, and the model is told with which token."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lsr.loading.padding import prepare_batches
from lsr.tuner.mistakes import InputError
from pipeline.core.errors import as_user_error
from pipeline.data.base_models import load_tokenizer, public_name
from pipeline.params.sources import ModelRow


def tokenizer_of(model: Any, row: ModelRow) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a row of models, set up to pad batches for this model, whose configuration is told.

    Raises:
        UserError: if batches for the model cannot be padded.
    """
    tokenizer = load_tokenizer(row)
    with as_user_error(InputError):
        prepare_batches(tokenizer, model.config, f"{row.where}: {public_name(row)[0]}")
    return tokenizer
