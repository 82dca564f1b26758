"""The rows of the tables: a method on a task, or on several whose mean is taken."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.compare.cells import FINISHED, MISSING, PARTLY, Cell
from pipeline.compare.estimates import PERCENT, Estimate, estimate
from pipeline.compare.precision import smallest
from pipeline.compare.verdicts import Verdict


class Row(NamedTuple):
    """A method on a task or an average, at the epoch selected on the validation split. What is unknown is None."""

    task: str  # or average
    method: str
    status: str
    reason: str  # why trainings did not finish
    trainings: int  # at the chosen rates, finished or not
    scores: Mapping[int, float]  # on the test split, percent, by seed
    score: Estimate  # their mean
    trained: int | None  # parameters of the adapter
    stored: int | None  # parameters in its file
    head: int | None
    bytes: int | None  # of the smallest file that costs next to nothing
    precision: str | None  # of that file
    score_at_bytes: Estimate
    seconds: float | None  # of a whole training, mean over seeds
    peak_bytes: int | None
    rate: float | None
    rate_at_edge: bool
    verdict: Verdict = Verdict()  # against the baseline


def row(place: str, method: str, cells: Mapping[str, Cell | None]) -> Row:
    """Return the row of a method on a task, or on the tasks of an average; None in the place of a cell: not run.

    Only seeds that finished on all tasks have a score. Numbers of parameters are those of the first seed, the largest
    over tasks, because those of heads depend on the number of classes; so do bytes, see `smallest`.
    """
    known = [cell for cell in cells.values() if cell]
    is_run = len(known) == len(cells)
    by_task = [{run.seed: PERCENT * run.score() for run in cell.finished} for cell in known]
    seeds = sorted(set.intersection(*map(set, by_task))) if is_run else []
    scores = {seed: fmean(one[seed] for one in by_task) for seed in seeds}
    every = [run for cell in known for run in cell.finished or cell.runs]
    precision, size, at_size = smallest(known) if is_run else (None, None, [])
    chosen = known[0].chosen if is_run and len(cells) == 1 else None
    return Row(
        task=place,
        method=method,
        status=_status(known, bool(scores)) if is_run else MISSING,
        reason=_reason(cells),
        trainings=max((len(cell.runs) for cell in known), default=0),
        scores=scores,
        score=estimate(list(scores.values())),
        trained=_largest(cell.shown.trained for cell in known),
        stored=_largest(cell.shown.stored for cell in known),
        head=_largest(cell.shown.head for cell in known),
        bytes=size,
        precision=precision,
        score_at_bytes=estimate(at_size),
        seconds=fmean(sum(run.seconds.values()) - run.seconds.get("round", 0) for run in every) if every else None,
        peak_bytes=_largest(run.peak_bytes for run in every),
        rate=chosen.rate if chosen else None,
        rate_at_edge=chosen is not None and known[0].at_edge,
    )


def _status(cells: Sequence[Cell], is_scored: bool) -> str:
    statuses = {cell.status for cell in cells}
    if statuses == {FINISHED}:
        return FINISHED
    return PARTLY if is_scored else min(statuses - {FINISHED, PARTLY}, default="no seed in common")


def _reason(cells: Mapping[str, Cell | None]) -> str:
    if missing := [task for task, cell in cells.items() if not cell]:
        return "" if len(cells) == 1 else f"on {', '.join(missing)}"
    reasons = {task: cell.reason for task, cell in cells.items() if cell and cell.reason}
    return "; ".join(reason if len(cells) == 1 else f"{task}: {reason}" for task, reason in reasons.items())


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
