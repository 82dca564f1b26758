"""Make batches for a model: set up its tokenizer to pad, and the padding token in its configuration."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lsr.errors import InputError
from lsr.loading.padding import prepare_batches
from pipeline.core.errors import as_user_error
from pipeline.data.base_models import load_tokenizer, public_name
from pipeline.params.sources import ModelEntry


def tokenizer_of(model: Any, entry: ModelEntry) -> PreTrainedTokenizerBase:
    """Load a model entry's tokenizer, set up to pad for this model, and set the padding token in its configuration.

    Raises:
        UserError: if batches for the model cannot be padded.
    """
    tokenizer = load_tokenizer(entry)
    where = f"{entry.where}: {public_name(entry)[0]}"
    with as_user_error(InputError):
        prepare_batches(tokenizer, model.config, where, writes=model.can_generate())
    return tokenizer
