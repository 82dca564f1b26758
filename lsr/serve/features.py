"""Read the features of texts: the inputs of the head's last layer, in small batches that others can go between."""

from collections.abc import Sequence

import numpy as np
import torch

from lsr.serve.passes import BatchRunner
from lsr_onnx.rows import TokenizedText

MAX_ROWS = 16  # texts of a batch
MAX_TOKENS = 512  # tokens of a batch, with padding

Array = np.ndarray


def split_batches(rows: Sequence[TokenizedText]) -> list[list[int]]:
    """Split rows into batches by their numbers, texts of similar length together."""
    lengths = [len(row.inputs["input_ids"]) for row in rows]
    batches = list[list[int]]()
    for number in np.argsort(lengths, kind="stable").tolist():
        last = batches[-1] if batches else []
        padded = lengths[number] * (len(last) + 1)
        if not last or len(last) == MAX_ROWS or padded > MAX_TOKENS:
            batches.append([number])
        else:
            last.append(number)
    return batches


def read_batch(
    passes: BatchRunner,
    rows: Sequence[TokenizedText],
    batch: Sequence[int],
) -> Array:  # (batch, width), float64
    """Return the features of rows by number: the inputs of the head's last layer, without a tenant's parameters."""
    texts = [rows[number].inputs for number in batch]
    inputs = passes.tokenizer.pad(texts, return_tensors="pt")
    with torch.no_grad():
        pooled = passes.bank.head_inputs(**inputs)
    return pooled.double().numpy()


def join_batches(batches: Sequence[Sequence[int]], parts: Sequence[Array]) -> Array:
    """Return the features of batches in the order of their rows' numbers."""
    numbers = np.concatenate(batches)
    in_order = np.argsort(numbers)
    features = np.concatenate(parts)
    return features[in_order]
