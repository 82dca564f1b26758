"""A row of the tables: a method on a task, or over all tasks. Scores are in percent."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.compare.cells import FINISHED, MISSING, PARTLY, Cell, best_epoch
from pipeline.compare.estimates import Estimate, estimate

AVERAGE = "average"  # in the place of a task
PERCENT = 100.0
Scores = Mapping[int, float]  # by seed


class Size(NamedTuple):
    """The costs of a method: parameters, bytes and seconds; None if unknown."""

    trained: int | None = None  # trained parameters of the adapter
    stored: int | None = None  # parameters in its file
    head: int | None = None
    file_bytes: int | None = None
    seconds: float | None = None  # of a whole training, mean over seeds
    train_seconds: float | None = None  # of the training steps alone
    peak_bytes: int | None = None  # maximum over seeds


class Row(NamedTuple):
    """The results of a method at the epoch selected on the validation split, over all seeds that finished."""

    task: str
    method: str
    adapter: str
    metric: str
    status: str
    reason: str  # why trainings did not finish
    runs: int  # trainings at the chosen rates, finished or not
    scores: Scores
    last: Scores  # at the last epoch
    best: Scores  # at the epoch that is best on the test split itself, which is optimistic
    validation: Scores
    size: Size
    rate: float | None = None
    head_rate: float | None = None
    at_edge: bool = False

    @property
    def score(self) -> Estimate:
        """The mean over seeds."""
        return estimate(list(self.scores.values()))

    @property
    def flattery(self) -> float | None:
        """The gain from selecting the epoch on the test split, mean over seeds; None if nothing finished."""
        return fmean(self.best[seed] - self.scores[seed] for seed in self.scores) if self.scores else None


def of_cell(cell: Cell) -> Row:
    """Return the row of a cell."""
    shown = cell.shown
    return Row(
        task=cell.task,
        method=cell.method,
        adapter=shown.adapter,
        metric=shown.metrics[0],
        status=cell.status,
        reason=cell.reason,
        runs=len(cell.runs),
        scores=_percent(cell.scores()),
        last=_percent(cell.scores(-1)),
        best=_percent({run.seed: run.score(best_epoch(run)) for run in cell.finished}),
        validation=_percent({run.seed: run.validation[run.selected] for run in cell.finished}),
        size=_size(cell),
        rate=cell.chosen.rate if cell.chosen else None,
        head_rate=cell.chosen.head_rate if cell.chosen else None,
        at_edge=cell.at_edge,
    )


def missing(task: str, method: str, adapter: str, metric: str) -> Row:
    """Return the row of a method that has not been run on a task."""
    reason = "no record in the arena"
    return Row(task, method, adapter, metric, MISSING, reason, 0, {}, {}, {}, {}, Size())


def average(rows: Sequence[Row]) -> Row:
    """Return the row of a method over all tasks, with the seeds that finished on each of them."""
    first = rows[0]
    seeds = sorted(set.intersection(*(set(row.scores) for row in rows)))
    whole = all(row.status == FINISHED for row in rows)
    return Row(
        task=AVERAGE,
        method=first.method,
        adapter=first.adapter,
        metric="mean of the tasks' metrics",
        status=FINISHED if whole else PARTLY if seeds else _worst(row.status for row in rows),
        reason="; ".join(f"{row.task}: {row.reason}" for row in rows if row.reason),
        runs=max(row.runs for row in rows),
        size=_joined([row.size for row in rows]),
        scores={seed: fmean(row.scores[seed] for row in rows) for seed in seeds},
        last={seed: fmean(row.last[seed] for row in rows) for seed in seeds},
        best={seed: fmean(row.best[seed] for row in rows) for seed in seeds},
        validation={seed: fmean(row.validation[seed] for row in rows) for seed in seeds},
    )


def _worst(statuses: Iterable[str]) -> str:
    found = set(statuses) - {FINISHED, PARTLY}
    return next(iter(sorted(found)), "no seed in common")


def _size(cell: Cell) -> Size:
    one, runs = cell.shown, cell.finished or cell.runs
    return Size(
        trained=one.trained,
        stored=one.stored,
        head=one.head,
        file_bytes=one.file_bytes,
        seconds=fmean(sum(run.seconds.values()) for run in runs),
        train_seconds=fmean(run.seconds.get("train", 0.0) for run in runs),
        peak_bytes=_largest(run.peak_bytes for run in runs),
    )


def _joined(sizes: Sequence[Size]) -> Size:
    """Return the largest sizes and the mean seconds: sizes of heads and files depend on the number of classes."""
    return Size(
        trained=_largest(size.trained for size in sizes),
        stored=_largest(size.stored for size in sizes),
        head=_largest(size.head for size in sizes),
        file_bytes=_largest(size.file_bytes for size in sizes),
        seconds=_mean(size.seconds for size in sizes),
        train_seconds=_mean(size.train_seconds for size in sizes),
        peak_bytes=_largest(size.peak_bytes for size in sizes),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _percent(scores: Scores) -> Scores:
    return {seed: PERCENT * score for seed, score in sorted(scores.items())}
