"""Logits of a model over a tokenized split."""

from collections.abc import Callable

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from pipeline.methods.device import device_of


@torch.inference_mode()
def logits(
    model: nn.Module,
    tokens: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int,
    advance: Callable[[int], None],
) -> Tensor:  # (examples, labels), float32, on the CPU, in the order of the split
    """Return the model's output for each example; examples of similar length are batched to minimize padding.

    Batches are moved to the model's device.
    """
    model.eval()
    where = device_of(model)
    lengths = torch.tensor(tokens["length"][:])
    order = lengths.argsort(descending=True, stable=True)
    inputs = tokens.select_columns([name for name in tokens.column_names if name in ("input_ids", "token_type_ids")])
    found = []
    for indices in order.split(batch_size):
        batch = {name: value.to(where) for name, value in collate(inputs[indices.tolist()]).items()}
        found.append(model(**batch).logits.float().cpu())
        advance(len(indices))
    return torch.cat(found)[order.argsort()]
