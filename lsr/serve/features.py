"""Read the features of texts: the inputs of the head's last layer, in small batches that others can go between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lsr.serve.bank import AdapterBank
from lsr.serve.passes import BatchRunner
from lsr_onnx.names import BASE
from lsr_onnx.rows import TokenizedText

MAX_ROWS = 32  # texts of a batch
MAX_TOKENS = 2048  # tokens of a batch, with padding

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


def read_batch(passes: BatchRunner, layer: str, rows: Sequence[TokenizedText]) -> Array:  # (rows, width), float64
    """Return the features of a batch: the inputs of the head's last layer, `layer`, without any tenant's parameters."""
    bank = passes.bank
    inputs = passes.tokenizer.pad([row.inputs for row in rows], return_tensors="pt")
    with bank.shared.one_thread, _without_head(bank, layer), torch.no_grad():
        pooled = bank(**inputs, adapter_names=[BASE] * len(rows)).logits
    features: Array = pooled.double().numpy()
    return features


@contextmanager
def _without_head(bank: AdapterBank, name: str) -> Iterator[None]:
    """Let the model return the inputs of its head's last layer in place of the outputs."""
    layer = bank.model.get_submodule(name)
    bank.model.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        bank.model.set_submodule(name, layer)


def join_batches(batches: Sequence[Sequence[int]], parts: Sequence[Array]) -> Array:
    """Return the features of batches in the order of their rows' numbers."""
    numbers = np.concatenate(batches)
    features: Array = np.concatenate(parts)[np.argsort(numbers)]
    return features
