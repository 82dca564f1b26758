"""Disagreements of methods: for each example, how many seeds of a method are right, or what it predicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.cells import Cell
from pipeline.compare.comparison import Comparison
from pipeline.compare.examples import Examples, has_numbers
from pipeline.compare.tables import Flat

MOST_EXAMPLES = 400  # of a task shown on the page with texts: those on which methods differ most
LONGEST_TEXT = 600  # characters


def of_task(found: Comparison, task: str) -> Flat | None:
    """Return the data of a task for the page; None if there are no examples, or nothing finished.

    Texts are included for the examples on which methods differ most; disagreements of pairs are counted over all.
    """
    examples = found.examples.get(task)
    cells = {method: cell for method, cell in found.cells[task].items() if cell.finished}
    if examples is None or not cells:
        return None
    numbers = has_numbers(next(iter(cells.values())).shown.metrics)
    answers = {method: _answers(cell) for method, cell in cells.items()}  # (seeds, examples) each
    rights = {method: _right(one, examples.labels, numbers) for method, one in answers.items()}
    kept = _most_disputed(list(rights.values()))
    return {
        "examples": len(examples.labels),
        "numbers": numbers,
        "shown": [_example(examples, place) for place in kept],
        "methods": {
            method: {
                "seeds": len(answers[method]),
                "right": _rounded(rights[method][kept]),
                "answer": _rounded(_usual(answers[method], numbers)[kept]),
            }
            for method in cells
        },
        "order": list(cells),
        "counts": {} if numbers else _counts(rights),
    }


def _answers(cell: Cell) -> NDArray[np.float64]:
    return np.array([run.predicted for run in cell.finished])


def _right(answers: NDArray[np.float64], labels: NDArray[np.float64], numbers: bool) -> NDArray[np.float64]:
    """Return the share of seeds that are right on each example; for numbers, the absolute error of their mean."""
    return np.abs(answers.mean(axis=0) - labels) if numbers else (answers == labels).mean(axis=0)


def _usual(answers: NDArray[np.float64], numbers: bool) -> NDArray[np.float64]:
    """Return the mean of the seeds' numbers, or the class that most seeds predict, the first if several."""
    if numbers:
        return answers.mean(axis=0)
    classes = np.unique(answers)
    return classes[(answers[:, :, None] == classes).sum(axis=0).argmax(axis=1)]


def _most_disputed(rights: Sequence[NDArray[np.float64]]) -> NDArray[np.intp]:
    """Return the indices of the MOST_EXAMPLES examples with the largest spread over methods, in their order."""
    spread = np.std(rights, axis=0)
    order = np.argsort(-spread, kind="stable")[:MOST_EXAMPLES]
    return np.sort(order[spread[order] > 0])


def _example(examples: Examples, place: int) -> list[Any]:
    label = examples.labels[place]
    pair = examples.pairs[place]
    return [int(place), _short(examples.texts[place]), pair and _short(pair), float(f"{label:.6g}")]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _counts(rights: Mapping[str, NDArray[np.float64]]) -> dict[str, list[int]]:
    """Return for each method the number of examples that it gets right, by most seeds, and each other method wrong."""
    names = list(rights)
    most = np.stack([rights[name] > 0.5 for name in names]).astype(np.int64)  # (methods, examples)
    alone = most @ (1 - most).T  # [first, second]: the first is right, the second is not
    return {name: [int(count) for count in row] for name, row in zip(names, alone, strict=True)}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
