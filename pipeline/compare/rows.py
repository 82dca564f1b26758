"""Cells (a method on a task with its training runs) and the table rows of tasks and averages."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, mode
from typing import Any, NamedTuple

import pandas as pd

from pipeline.arena import plan, tuning
from pipeline.arena.preset import Preset
from pipeline.arena.record import Quantized, Record
from pipeline.tasks.scores import half_width
from pipeline.tasks.sums import ROUNDING
from pipeline.tasks.task import name_interval

FINISHED = "finished"
PARTLY = "partly finished"
UNTUNED = "not tuned yet"
MISSING = "not run"
PERCENT = 100.0
FULL = "float32"
AS_TRAINED = "as trained"  # the only precision known of training runs that were not quantized
LOSS = 0.002  # largest loss of validation score, as a fraction; page.html states it
Row = dict[str, Any]
ByTask = Sequence[Sequence[Record]]  # training runs
BySeed = dict[int, float]  # scores
Cells = dict[str, dict[str, "Cell"]]  # cells by task and method, smallest method first
OnTasks = Mapping[str, "Cell | None"]  # cells of a method by task; None: not run


class Cell(NamedTuple):
    """A method on a task. Without a tuned setting there is no chosen record, and `trainings` has all records."""

    trials: tuple[Record, ...]  # tuning runs with the first seed, one per pair of rates
    trainings: tuple[Record, ...]  # training runs at the tuned setting by seed, including those that did not finish
    chosen: Record | None
    labels: Path

    @property
    def finished(self) -> tuple[Record, ...]:
        """The training runs over which means are taken."""
        if self.chosen is None:
            return ()
        return tuple(training for training in self.trainings if training.status == FINISHED)

    @property
    def status(self) -> str:
        """The status of all seeds together: finished, partly finished, or the most common other status."""
        statuses = [training.status for training in self.trainings]
        if self.chosen:
            return FINISHED if {*statuses} == {FINISHED} else PARTLY
        return UNTUNED if FINISHED in statuses else mode(statuses)

    @property
    def reason(self) -> str:
        """The unfinished seeds with their reasons, in one line; seeds with equal reasons are grouped."""
        seeds_by_reason: dict[str, list[str]] = {}
        for training in self.trainings:
            if training.status == FINISHED:
                continue
            seed = f"seed {training.seed}"
            if self.chosen is None:
                seed += f" at {training.rate or training.head_rate:g}"
            reason = f"{training.status}: {training.reason}"
            seeds_by_reason.setdefault(reason, []).append(seed)
        lines = [f"{', '.join(seeds)}: {reason}" for reason, seeds in seeds_by_reason.items()]
        return "; ".join(lines)

    @property
    def shown(self) -> Record:
        """The record with the method's settings and sizes: the chosen one, or the first."""
        return self.chosen or self.trainings[0]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried, so that one beyond it may be better."""
        if self.chosen is None:
            return False
        rates = {training.rate or 0.0 for training in self.trials}
        head_rates = {training.head_rate for training in self.trials}
        return _is_end(self.chosen.rate, rates) or _is_end(self.chosen.head_rate, head_rates)


def _is_end(rate: float | None, tried: Collection[float]) -> bool:
    """Return whether a rate is the lowest or highest of several different ones."""
    return len(tried) > 1 and rate in (min(tried), max(tried))


def cells(name: str, preset: Preset, records: Mapping[str, Record]) -> tuple[Cells, int]:
    """Return the cells of a preset that have records, and the number of records that belong to none.

    `records` are by key.
    """
    used = set[str]()
    with_records = []
    for planned in plan.cells(name, preset):
        steps = list(tuning.steps(planned, records))
        trainings = {training.key for training in chain.from_iterable(steps)}
        keys = trainings & records.keys()
        if keys:
            tuned = {training.key for training in steps[-1] if training.is_tuned}
            known = [records[key] for key in keys]
            with_records.append(_cell(planned, known, tuned))
            used |= keys
    tasks: Cells = {}
    for cell in sorted(with_records, key=_by_task_and_size):
        methods = tasks.setdefault(cell.shown.task, {})
        methods[cell.shown.method] = cell
    return tasks, len(records) - len(used)


def _by_task_and_size(cell: Cell) -> tuple[str, int, str]:
    record = cell.shown
    return record.task, record.trained, record.method


def _by_seed_and_rates(record: Record) -> tuple[int, float, float]:
    return record.seed, record.rate or 0.0, record.head_rate


def _cell(
    planned: plan.Cell,
    known: Iterable[Record],
    tuned: Collection[str],
) -> Cell:
    """Return a cell with its records; `tuned` has the keys of those at its tuned setting, if there is one.

    A record may have another name: keys do not depend on names, so methods of the same settings share their records.
    """
    names = {"task": planned.task, "method": planned.method}
    records = []
    for record in sorted(known, key=_by_seed_and_rates):
        renamed = record.model_copy(update=names)
        records.append(renamed)
    first_seed = planned.seeds[0]
    trials = tuple(record for record in records if record.seed == first_seed)
    if not tuned:
        return Cell(trials, tuple(records), None, planned.labels)
    trainings = tuple(record for record in records if record.key in tuned)
    finished = (record for record in trainings if record.status == FINISHED)
    return Cell(trials, trainings, next(finished, None), planned.labels)


def row(
    place: str,
    method: str,
    cells: OnTasks,
    difference: Row,
) -> Row:
    """Return the row of a method on a task or an average; None in place of a cell means not run.

    Scores are percent on the test split, at the epoch selected on the validation split; only seeds that finished on all
    tasks have one. Numbers of parameters are the first seed's, and the maximum over tasks, because heads depend on the
    number of classes; so do bytes, see `smallest`. Unknown values are None.
    """
    known = [cell for cell in cells.values() if cell]
    is_run = len(known) == len(cells)
    scores = _mean_scores(known) if is_run else {}
    file = smallest(known) if is_run else File()
    chosen = known[0].chosen if is_run and len(cells) == 1 else None
    losses = _losses(known)
    unseen = _unseen(known) if is_run else {}
    return {
        "task": place,
        "method": method,
        "status": _status(known, bool(scores)) if is_run else MISSING,
        "reason": _reason(cells),
        "trainings": max((len(cell.trainings) for cell in known), default=0),  # finished or not
        "scores": scores,  # scores by seed
        **estimate("score", list(scores.values())),
        "trained": max((cell.shown.trained for cell in known), default=None),  # parameters of the adapter
        "stored": max((cell.shown.stored for cell in known), default=None),  # parameters in its file
        "bytes": file.bytes,  # size of the smallest file that loses at most LOSS
        "precision": file.precision,
        **estimate("score_at_bytes", file.scores),
        "seconds": _seconds(known),  # CPU seconds of a whole training run, mean over seeds
        **({"loss": fmean(losses)} if losses else {}),  # per token of a completion
        **({"unseen": unseen} if unseen else {}),  # scores of tenants without texts in training, by labeled texts
        **({"epochs": chosen.epochs} if chosen and chosen.epochs else {}),  # number of epochs, if it is tuned
        "rate": chosen.rate if chosen else None,
        "rate_at_edge": chosen is not None and known[0].at_edge,
        **difference,  # difference vs. the baseline
    }


def _mean_scores(cells: Iterable[Cell]) -> BySeed:
    """Return the mean over tasks, in percent, by seed, for seeds that finished on all tasks."""
    by_task = []
    for cell in cells:
        scores = {training.seed: PERCENT * training.score() for training in cell.finished}
        by_task.append(scores)
    return _mean_by_seed(by_task)


def _mean_by_seed(by_task: Sequence[BySeed]) -> BySeed:
    """Return the mean score over tasks by seed, for seeds that have one on all tasks."""
    seeds = set.intersection(*map(set, by_task))
    means: BySeed = {}
    for seed in sorted(seeds):
        means[seed] = fmean(scores[seed] for scores in by_task)
    return means


def _seconds(cells: Iterable[Cell]) -> float | None:
    """Return the mean seconds per training run, without scoring in all precisions; None if none ran."""
    seconds = []
    for cell in cells:
        for training in cell.finished or cell.trainings:
            total = sum(training.seconds.values())
            seconds.append(total - training.seconds.get("quantize", 0))
    return fmean(seconds) if seconds else None


def _losses(cells: Iterable[Cell]) -> list[float]:
    """Return the test losses of the training runs; empty if the task has no loss."""
    losses = []
    for cell in cells:
        for training in cell.finished:
            metrics = training.test[training.selected]
            if "loss" in metrics:
                losses.append(metrics["loss"])
    return losses


def _unseen(cells: Iterable[Cell]) -> dict[str, Row]:
    """Return the mean score over tenants without any text in training, with its interval over seeds, in percent.

    By the number of labeled texts of such a tenant; over tasks, means are taken by seed as those of other scores.
    """
    by_task = defaultdict[str, list[BySeed]](list)
    for cell in cells:
        of_task = defaultdict[str, BySeed](dict)
        for training in cell.finished:
            scores = pd.DataFrame(training.unseen)  # one row per number of labeled texts
            for count, mean in scores.mean(axis=1).items():
                of_task[str(count)][training.seed] = PERCENT * mean
        for count, by_seed in of_task.items():
            by_task[count].append(by_seed)
    means = dict[str, Row]()
    for count, of_tasks in by_task.items():
        values = _mean_by_seed(of_tasks).values()
        means[count] = estimate("score", list(values))
    return means


def _status(cells: Sequence[Cell], is_scored: bool) -> str:
    statuses = {cell.status for cell in cells}
    if statuses == {FINISHED}:
        return FINISHED
    return PARTLY if is_scored else min(statuses - {FINISHED, PARTLY}, default="no seed in common")


def _reason(cells: OnTasks) -> str:
    missing = [task for task, cell in cells.items() if not cell]
    if missing:
        return "" if len(cells) == 1 else f"on {', '.join(missing)}"
    reasons = []
    for task, cell in cells.items():
        if cell and cell.reason:
            where = "" if len(cells) == 1 else f"{task}: "
            reasons.append(f"{where}{cell.reason}")
    return "; ".join(reasons)


def estimate(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return a mean over seeds by name, with its 95 % interval by Student's t as `name_low` and `name_high`.

    The interval is mean ± t · std / √n with n - 1 degrees of freedom. One seed gives no interval, no seed no mean.
    """
    mean = fmean(values) if values else None
    interval: tuple[float | None, float | None] = (None, None)
    if mean is not None and len(values) > 1:
        half = half_width(values)
        interval = (mean - half, mean + half)
    return {
        name: mean,
        **name_interval(name, interval),
    }


class File(NamedTuple):
    """Size and scores of a method's adapter file in a precision, over tasks and seeds."""

    precision: str | None = None  # None if there is no file
    bytes: int | None = None  # size of the largest file
    scores: Sequence[float] = ()  # test scores in percent for each seed that all tasks have


def _files(training: Record) -> dict[str, Quantized]:
    """Return the files of a training run by precision, full precision first and AS_TRAINED last."""
    epoch = training.selected
    as_trained = Quantized(
        bytes=training.file_bytes,
        validation=training.validation[epoch],
        test=training.test[epoch],
    )
    return {**training.quantized, AS_TRAINED: as_trained}


def _largest(precision: str, by_task: ByTask) -> int:
    """Return the bytes of the largest file in a precision."""
    trainings = chain.from_iterable(by_task)
    return max(_files(training)[precision].bytes for training in trainings)


def _validation(precision: str, by_task: ByTask) -> float:
    """Return the mean validation score in a precision, over seeds and then tasks, as a fraction."""
    means = []
    for trainings in by_task:
        means.append(fmean(_files(training)[precision].validation for training in trainings))
    return fmean(means)


def _scores_in(precision: str, by_task: ByTask) -> list[float]:
    """Return the mean test score over tasks in a precision, in percent, for each common seed."""
    tests = []
    for trainings in by_task:
        scores: BySeed = {}
        for training in trainings:
            file = _files(training)[precision]
            scores[training.seed] = file.test[training.metrics[0]]
        tests.append(scores)
    return [PERCENT * score for score in _mean_by_seed(tests).values()]


def smallest(cells: Sequence[Cell]) -> File:
    """Return a method's smallest file that loses at most LOSS.

    The loss is the mean over tasks and the quantized seeds. Bytes are the maximum over tasks, because heads depend on
    the number of classes. If a task has no quantized files, the file is as trained.
    """
    if not all(cell.finished for cell in cells):
        return File(AS_TRAINED, max(cell.shown.file_bytes for cell in cells))
    by_task = list[Sequence[Record]]()
    for cell in cells:
        quantized = [training for training in cell.finished if training.quantized]
        by_task.append(quantized)
    if not all(by_task):
        by_task = [cell.finished for cell in cells]
    first, *others = map(_files, chain.from_iterable(by_task))
    validation = {}
    for precision in first:
        if all(precision in other for other in others):
            validation[precision] = _validation(precision, by_task)
    reference = validation.get(FULL, validation[AS_TRAINED])
    sizes = {}
    for precision, score in validation.items():
        if score > reference - LOSS - ROUNDING:
            sizes[precision] = _largest(precision, by_task)
    chosen = min(sizes, key=sizes.__getitem__)
    return File(chosen, sizes[chosen], _scores_in(chosen, by_task))
