"""The files of predictions for the servers of GLUE and SuperGLUE."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation import inference
from pipeline.evaluation.answers import chosen, members
from pipeline.params.rows import Classes, Examples, Number

Index = Sequence[int]  # of an example: its number, or the numbers of passage, question and answer


def write(
    folder: Path,
    row: Examples,
    logits: Tensor,  # (examples, labels)
    groups: NDArray[Any] | None,  # (examples,)
    index: Sequence[Index] | None,
) -> Path:
    """Write the submission file of a row to a folder, and return its path.

    Without an index the examples are numbered from 0. Numbers are clipped to the ends of their scale.
    """
    assert row.submission is not None  # a hidden split has one
    predictions = _predictions(row, logits.numpy(), groups)
    numbers = [(position,) for position in range(len(predictions))] if index is None else index
    if row.choices and index is not None and groups is not None:
        numbers = [index[first] for first in members(groups)[:, 0]]
    numbered = list(zip(numbers, predictions, strict=True))
    path = folder / row.submission.file
    lines = _tab_separated(numbered) if path.suffix == ".tsv" else map(json.dumps, _objects(numbered))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _predictions(row: Examples, logits: NDArray[Any], groups: NDArray[Any] | None) -> list[str | int]:
    """Return what the file holds for each answer."""
    if isinstance(row.label, Number):
        clipped = inference.predicted(logits, row).clip(row.label.low, row.label.high)
        return [f"{number:.3f}" for number in clipped.tolist()]
    assert row.submission is not None
    labels = row.submission.labels or (row.label.names if isinstance(row.label, Classes) else row.names)
    found = inference.predicted(logits, row) if groups is None or not row.choices else chosen(logits, groups)
    return [labels[number] for number in found.tolist()]


def _tab_separated(numbered: Sequence[tuple[Index, str | int]]) -> Iterator[str]:
    yield "index\tprediction"
    for (number,), prediction in numbered:
        yield f"{number}\t{prediction}"


def _objects(numbered: Sequence[tuple[Index, str | int]]) -> Iterator[dict[str, Any]]:
    if len(numbered[0][0]) == 1:
        yield from ({"idx": number, "label": prediction} for (number,), prediction in numbered)
        return
    for passage, of_passage in groupby(numbered, key=lambda one: one[0][0]):
        questions = [
            {"idx": question, "answers": [{"idx": number[2], "label": prediction} for number, prediction in answers]}
            for question, answers in groupby(of_passage, key=lambda one: one[0][1])
        ]
        yield {"idx": passage, "passage": {"questions": questions}}
