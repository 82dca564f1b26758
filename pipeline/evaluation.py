"""Compute a model's outputs for a tokenized split, or the texts that a language model generates.

Generation is greedy, in batches padded on the left, with the KV cache, up to the end token.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from lsr.loading.prompts import continuations
from pipeline.core.console import Advance
from pipeline.data import tokens
from pipeline.tasks import Outcome, Task
from pipeline.tasks.completion import Generated, is_equal
from pipeline.tasks.head import Head
from pipeline.tasks.prompts import Example, Prompts
from pipeline.tasks.task import TENANT, Scores

INPUTS = ("input_ids", "token_type_ids")
SLACK = 8  # additional tokens beyond the longest expected answer: the same text may have other tokens


@torch.inference_mode()
def outputs(
    head: Head | type[Head],
    model: Any,
    split: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int,
    advance: Advance = lambda *_: None,
) -> Tensor:  # (examples, ...), float32, on the CPU, in the order of the split
    """Return the model's output for each example; examples of similar length are batched to minimize padding.

    Batches are moved to the model's device.
    """
    model.eval()
    where = next(model.parameters()).device
    lengths = torch.tensor(split["length"][:])
    order = lengths.argsort(descending=True, stable=True)
    needed = {*INPUTS, TENANT, *head.output_columns}
    inputs = split.select_columns([name for name in split.column_names if name in needed])
    parts = []
    for indices in order.split(batch_size):
        collated = collate(inputs[indices.tolist()])
        batch = {name: value.to(where) for name, value in collated.items()}
        parts.append(head.outputs(model, batch).float().cpu())
        advance(len(indices))
    return torch.cat(parts)[order.argsort()]


def outcome(outputs: Tensor, split: Dataset) -> Outcome:
    """Return the outputs for a labeled split together with its labels."""
    return Outcome(outputs, tokens.labels_of(split), tokens.groups_of(split))


@torch.inference_mode()
def write(
    model: Any,
    prompts: Prompts,
    asked: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = lambda *_: None,
    streamer: Any = None,
) -> list[str]:
    """Generate at most `max_new_tokens` tokens for each prompt; prompts of equal length share batches."""
    model.eval()
    order = torch.tensor([len(ids) for ids in asked]).argsort(descending=True, stable=True)
    texts = [""] * len(asked)
    start = time.monotonic()
    count = 0
    for indices in order.split(batch_size):
        places = indices.tolist()
        rows = [asked[place] for place in places]
        generated = continuations(
            model, prompts.tokenizer, rows, max_new_tokens, prompts.stop_token_ids, streamer=streamer
        )
        for place, ids in zip(places, generated.tolist(), strict=True):
            answer = prompts.answer(ids)
            texts[place] = prompts.text(answer)
            count += len(answer)
        advance(len(places), f"{count / (time.monotonic() - start):,.0f} tokens/s")
    return texts


def exact_match(model: Any, prompts: Prompts, split: Dataset, count: int, batch_size: int) -> Scores:
    """Return the exact matches among `count` evenly spaced prompts of a tokenized split."""
    step = math.ceil(len(split) / count)
    asked, expected = _apart(split.select(range(0, len(split), step)))
    longest = max(map(len, expected)) + SLACK
    texts = write(model, prompts, asked, longest, batch_size)
    right = 0
    for text, ids in zip(texts, expected, strict=True):
        right += is_equal(text, prompts.text(ids))
    return {"exact_match": right / len(texts)}


def _apart(split: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts of a tokenized split, and the expected answers with their end tokens."""
    asked = list[list[int]]()
    answers = list[list[int]]()
    for row in split.select_columns(["input_ids", "label"]):
        example = Example(row["input_ids"], row["label"])
        asked.append(example.ids[: -example.answer])
        answers.append(example.ids[-example.answer :])
    return asked, answers


def evaluate_generation(
    task: Task,
    model: Any,
    split: Dataset,
    prompts: Prompts,
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = lambda *_: None,
) -> Generated:
    """Return the texts that a model generates for a tokenized split, and the loss of the expected ones."""
    asked, _ = _apart(split)
    texts = write(model, prompts, asked, max_new_tokens, batch_size, advance)
    fewer = max(1, batch_size // 4)  # fewer, because logits of all words take memory
    outputs_of_split = outputs(task.head, model, split, task.head.collator(prompts.tokenizer), fewer)
    return Generated(outputs_of_split, tokens.labels_of(split), None, texts)
