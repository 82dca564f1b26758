"""Fixed token ids, and a model's outputs for them, with which two models are compared."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

ROWS, LENGTH, SEED = 8, 16, 0
RESERVED = 2  # positions that RoBERTa's embeddings keep for padding


def probe_ids(model: Any) -> Tensor | None:  # (ROWS, LENGTH), shorter if the model has fewer positions
    """Return seeded token ids of the model's vocabulary; None if it reads none, such as a model of images."""
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        return None
    positions = getattr(model.config, "max_position_embeddings", None) or LENGTH + RESERVED
    generator = torch.Generator().manual_seed(SEED)
    shape = ROWS, max(1, min(LENGTH, positions - RESERVED))
    return torch.randint(embeddings.num_embeddings, shape, generator=generator)


@torch.no_grad()
def outputs(
    model: Any,
    ids: Tensor,  # (rows, length)
    state: Mapping[str, Tensor] | None = None,  # in place of the model's own tensors of these names
) -> Tensor:  # float64
    """Return the model's first output, the logits if it has a head, computed row by row to need no padding token."""
    inputs = [{"input_ids": row[None]} for row in ids]
    if model.config.is_encoder_decoder:
        inputs = [{**row, "decoder_input_ids": row["input_ids"]} for row in inputs]
    call = partial(functional_call, model, dict(state or {}), (), tie_weights=False)
    return torch.cat([call({**row, "return_dict": True})[0].double() for row in inputs])
