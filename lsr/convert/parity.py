"""What a model says of fixed token ids, by which two models are compared."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

ROWS, LENGTH, SEED = 8, 16, 0
RESERVED = 2  # positions that RoBERTa's embeddings keep for padding


@torch.no_grad()
def outputs(model: Any, rows: int = ROWS, state: Mapping[str, Tensor] | None = None) -> Tensor | None:  # float64
    """Return the model's first output, the logits if it has a head, for seeded token ids of its vocabulary.

    None if it reads no token ids, such as a model of images. `state` is in place of its own tensors of these names.
    Rows are computed one by one, to need no padding token.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        return None
    positions = getattr(model.config, "max_position_embeddings", None) or LENGTH + RESERVED
    shape = ROWS, max(1, min(LENGTH, positions - RESERVED))
    ids = torch.randint(embeddings.num_embeddings, shape, generator=torch.Generator().manual_seed(SEED))
    names = ["input_ids", *(["decoder_input_ids"] if model.config.is_encoder_decoder else [])]
    call = partial(functional_call, model, dict(state or {}), (), tie_weights=False)
    return torch.cat([call({**dict.fromkeys(names, row[None]), "return_dict": True})[0].double() for row in ids[:rows]])
