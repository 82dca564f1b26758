"""The contents of the tables, the pictures and the page, computed once. Scores are in percent."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from pipeline.arena.record import Record
from pipeline.compare import bootstrap, labels
from pipeline.compare.bootstrap import Leads
from pipeline.compare.cells import FINISHED, MISSING, PARTLY, Cell, cells
from pipeline.compare.estimates import CONFIDENCE, Estimate, difference, estimate, holm
from pipeline.core import console
from pipeline.core.errors import UserError, nearest

AVERAGE = "average"  # in the place of a task
PERCENT = 100.0
RESAMPLES = 10_000
ALIKE = ("commit", "torch", "transformers", "peft", "cpu")  # which should be the same in all records of a comparison


class Size(NamedTuple):
    """The costs of a method; None if unknown."""

    trained: int | None = None  # parameters of the adapter
    stored: int | None = None  # parameters in its file
    head: int | None = None
    bytes: int | None = None  # of the adapter's file, with the head
    seconds: float | None = None  # of a whole training, mean over seeds
    peak_bytes: int | None = None  # maximum over seeds


class Row(NamedTuple):
    """A method on a task, or over all tasks, at the epoch selected on the validation split."""

    task: str
    method: str
    adapter: str
    metric: str
    status: str
    reason: str  # why trainings did not finish
    trainings: int  # at the chosen rates, finished or not
    scores: Mapping[int, float]  # on the test split, by seed
    validation: float | None  # mean over seeds
    size: Size
    rate: float | None = None
    head_rate: float | None = None
    at_edge: bool = False

    @property
    def score(self) -> Estimate:
        """The mean over seeds."""
        return estimate(list(self.scores.values()))


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


class Comparison(NamedTuple):
    """A comparison of methods on the tasks of a preset. Rows and pairs are by task, or AVERAGE, and by method."""

    preset: str
    baseline: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # smallest first
    rows: Mapping[str, Mapping[str, Row]]
    pairs: Mapping[str, Mapping[str, Paired]]
    made: Mapping[str, list[str]]  # where the records come from
    notes: tuple[str, ...]  # that a reader should know
    resamples: int


def compare(preset: str, records: Sequence[Record], baseline: str, resamples: int = RESAMPLES) -> Comparison:
    """Compare the methods of the records with one of them.

    Raises:
        UserError: if there is no such baseline, or a file of labels is not valid.
    """
    tasks, dropped = cells(records)
    methods = _methods(tasks)
    if baseline not in methods:
        near = nearest(baseline, methods)
        raise UserError(f"--baseline: {preset} has no method {baseline!r}{near}; methods: {', '.join(methods)}")
    rows = {task: {method: _row(tasks, task, method) for method in methods} for task in tasks}
    rows[AVERAGE] = {method: _average([rows[task][method] for task in tasks]) for method in methods}
    known, unusable = labels.read(preset, tasks)
    leads: dict[str, Leads] = {task: {} for task in tasks} | {
        task: bootstrap.leads(tasks[task], baseline, known[task], resamples)
        for task in console.track(known, "bootstrap", len(known), "tasks")
    }
    leads[AVERAGE] = bootstrap.over_tasks(list(leads.values()))
    made = _made(records)
    mixed = [f"records are from {len(made[name])} {name}s" for name in ALIKE if len(made.get(name, ())) > 1]
    outdated = [f"{dropped:,} records left out: repeated, or from earlier settings of their method"] if dropped else []
    return Comparison(
        preset=preset,
        baseline=baseline,
        tasks=tuple(tasks),
        methods=methods,
        rows=rows,
        pairs={task: _pairs(rows[task], baseline, leads[task]) for task in rows},
        made=made,
        notes=(*mixed, *unusable, *outdated),
        resamples=resamples,
    )


def _methods(tasks: Mapping[str, Mapping[str, Cell]]) -> tuple[str, ...]:
    """Return all methods, sorted by largest size."""
    sizes: dict[str, int] = {}
    for cell in (cell for methods in tasks.values() for cell in methods.values()):
        sizes[cell.method] = max(cell.shown.trained, sizes.get(cell.method, 0))
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _row(tasks: Mapping[str, Mapping[str, Cell]], task: str, method: str) -> Row:
    if method not in tasks[task]:
        adapter = next(row[method].shown.adapter for row in tasks.values() if method in row)
        metric = next(iter(tasks[task].values())).shown.metrics[0]
        return Row(task, method, adapter, metric, MISSING, "no record in the arena", 0, {}, None, Size())
    cell = tasks[task][method]
    shown = cell.shown
    return Row(
        task=task,
        method=method,
        adapter=shown.adapter,
        metric=shown.metrics[0],
        status=cell.status,
        reason=cell.reason,
        trainings=len(cell.runs),
        scores={run.seed: PERCENT * run.score() for run in cell.finished},
        validation=_mean(PERCENT * run.validation[run.selected] for run in cell.finished),
        size=_size(cell),
        rate=shown.rate if cell.chosen else None,
        head_rate=shown.head_rate if cell.chosen else None,
        at_edge=cell.at_edge,
    )


def _average(rows: Sequence[Row]) -> Row:
    """Return the row of a method over all tasks, with the seeds that finished on each of them.

    Sizes are the largest, because those of heads and files depend on the number of classes.
    """
    seeds = sorted(set.intersection(*(set(row.scores) for row in rows)))
    other = sorted({row.status for row in rows} - {FINISHED, PARTLY})
    whole = all(row.status == FINISHED for row in rows)
    sizes = [row.size for row in rows]
    return Row(
        task=AVERAGE,
        method=rows[0].method,
        adapter=rows[0].adapter,
        metric="mean of the tasks' metrics",
        status=FINISHED if whole else PARTLY if seeds else next(iter(other), "no seed in common"),
        reason="; ".join(f"{row.task}: {row.reason}" for row in rows if row.reason),
        trainings=max(row.trainings for row in rows),
        scores={seed: fmean(row.scores[seed] for row in rows) for seed in seeds},
        validation=_mean(row.validation for row in rows) if seeds else None,
        size=Size(
            trained=_largest(size.trained for size in sizes),
            stored=_largest(size.stored for size in sizes),
            head=_largest(size.head for size in sizes),
            bytes=_largest(size.bytes for size in sizes),
            seconds=_mean(size.seconds for size in sizes),
            peak_bytes=_largest(size.peak_bytes for size in sizes),
        ),
    )


def _size(cell: Cell) -> Size:
    shown, runs = cell.shown, cell.finished or cell.runs
    return Size(
        trained=shown.trained,
        stored=shown.stored,
        head=shown.head,
        bytes=shown.file_bytes,
        seconds=fmean(sum(run.seconds.values()) for run in runs),
        peak_bytes=_largest(run.peak_bytes for run in runs),
    )


def _pairs(rows: Mapping[str, Row], baseline: str, leads: Leads) -> dict[str, Paired]:
    """Return the comparison of each method that has a seed in common with the baseline."""
    reference = rows[baseline].scores
    paired = {
        method: Paired(difference(row.scores, reference))
        for method, row in rows.items()
        if method != baseline and set(row.scores) & set(reference)
    }
    tested = [method for method in paired if method in leads]
    values = [bootstrap.p_value(leads[method]) for method in tested]
    tail = (1 - CONFIDENCE) / 2
    for method, p, corrected in zip(tested, values, holm(values), strict=True):
        low, high = (PERCENT * float(end) for end in np.quantile(leads[method], [tail, 1 - tail]))
        paired[method] = paired[method]._replace(low=low, high=high, p=p, p_holm=corrected)
    return paired


def _made(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values of each field of the records' `made`, by name; of dates only the first and the last."""
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.made.items():
            values.setdefault(name, set()).add(value)
    listed = {name: sorted(different) for name, different in sorted(values.items())}
    if dates := listed.get("date"):
        listed["date"] = sorted({dates[0], dates[-1]})
    return listed


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
