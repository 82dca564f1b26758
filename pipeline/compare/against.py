"""Comparison of each method with the baseline, paired by seed and by example."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compare import resampling
from pipeline.compare.cells import Cell
from pipeline.compare.estimates import CONFIDENCE, Estimate, difference, holm
from pipeline.compare.examples import Examples
from pipeline.compare.rows import PERCENT, Row

Resampled = Mapping[str, NDArray[np.float64]]  # by method: its lead on each resample, in percentage points


class Paired(NamedTuple):
    """The lead of a method over the baseline, in percentage points, and its significance.

    The interval over seeds keeps the test examples fixed; the bootstrap resamples examples and keeps the seeds fixed.
    `p_holm` is corrected for the number of methods on the task.
    """

    over_seeds: Estimate
    low: float | None = None  # 95 % interval over examples
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def resampled(
    cells: Mapping[str, Cell], baseline: str, examples: Examples, resamples: int
) -> dict[str, NDArray[np.float64]]:
    """Return the lead of each method of a task over the baseline on each resample, (resamples,), in percentage points.

    It is a mean over the seeds in common. Methods without such a seed are left out.
    """
    runs = [run for cell in cells.values() for run in cell.finished]
    if baseline not in cells or not cells[baseline].finished:
        return {}
    task = runs[0].task
    predicted = [np.array(run.predicted) for run in runs]
    # Each task has its own seed, so that its draws do not depend on the other tasks.
    found = resampling.scores(runs[0].metrics[0], examples.labels, predicted, resamples, zlib.crc32(task.encode()))
    by_run = {(run.method, run.seed): scores for run, scores in zip(runs, found, strict=True)}
    differences: dict[str, NDArray[np.float64]] = {}
    for method, cell in cells.items():
        shared = [run.seed for run in cell.finished if (baseline, run.seed) in by_run]
        if method != baseline and shared:
            ahead = [by_run[method, seed] - by_run[baseline, seed] for seed in shared]
            differences[method] = PERCENT * np.mean(ahead, axis=0)
    return differences


def over_tasks(found: Sequence[Resampled]) -> dict[str, NDArray[np.float64]]:
    """Return the lead on each resample, averaged over tasks, for the methods that all tasks have."""
    shared = set.intersection(*(set(one) for one in found)) if found else set()
    return {method: np.mean([one[method] for one in found], axis=0) for method in sorted(shared)}


def pairs(rows: Mapping[str, Row], baseline: str, differences: Resampled) -> dict[str, Paired]:
    """Return the comparison of each method that has a seed in common with the baseline, on a task or over all."""
    reference = rows[baseline].scores if baseline in rows else {}
    found = {
        method: Paired(difference(row.scores, reference))
        for method, row in rows.items()
        if method != baseline and set(row.scores) & set(reference)
    }
    tested = [method for method in found if method in differences]
    values = [resampling.p_value(differences[method]) for method in tested]
    tail = (1 - CONFIDENCE) / 2
    for method, p, corrected in zip(tested, values, holm(values), strict=True):
        low, high = np.quantile(differences[method], [tail, 1 - tail])
        found[method] = found[method]._replace(low=float(low), high=float(high), p=p, p_holm=corrected)
    return found
