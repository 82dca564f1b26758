"""A method on a task, by the training runs that count, and the rows of the tables: on one, or on a mean of several."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from scipy import stats

from pipeline.arena import plan, tuning
from pipeline.arena.preset import Preset
from pipeline.arena.record import Record, Rounded
from pipeline.compare.leads import CONFIDENCE
from pipeline.tasks.sums import ROUNDING

FINISHED = "finished"
PARTLY = "partly finished"
UNTUNED = "not tuned yet"
MISSING = "not run"
PERCENT = 100.0
FULL = "float32"
AS_TRAINED = "as trained"  # the only precision known of training runs that were not quantized
LOSS = 0.002  # of the validation score, a fraction, of which page.html tells
Row = dict[str, Any]
ByTask = Sequence[Sequence[Record]]  # training runs
Entries = dict[str, dict[str, "Entry"]]  # by task and method, smallest method first


class Entry(NamedTuple):
    """A method on a task. Without a tuned setting there is no chosen record, and `trainings` are all records."""

    tries: tuple[Record, ...]  # with the first seed, one per pair of rates
    trainings: tuple[Record, ...]  # at the tuned setting, by seed, including those that did not finish
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
        if self.chosen:
            return FINISHED if len(self.finished) == len(self.trainings) else PARTLY
        statuses = Counter(training.status for training in self.trainings)
        if FINISHED in statuses:
            return UNTUNED
        status, _ = statuses.most_common()[0]
        return status

    @property
    def reason(self) -> str:
        """Which seeds did not finish and why, in one line; seeds with the same reason are listed together."""
        reasons: dict[str, list[str]] = {}
        unfinished = [training for training in self.trainings if training.status != FINISHED]
        for training in unfinished:
            reason = f"{training.status}: {training.reason}"
            rate = "" if self.chosen else f" at {training.rate or training.head_rate:g}"
            reasons.setdefault(reason, []).append(f"seed {training.seed}{rate}")
        return "; ".join(f"{', '.join(seeds)}: {reason}" for reason, seeds in reasons.items())

    @property
    def shown(self) -> Record:
        """The record with the settings and sizes of the method: the chosen one, or the first."""
        return self.chosen or self.trainings[0]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried, so that one beyond may be better."""
        if self.chosen is None:
            return False
        rates = [training.rate for training in self.tries if training.rate]
        head_rates = [training.head_rate for training in self.tries]
        return _is_end(self.chosen.rate, rates) or _is_end(self.chosen.head_rate, head_rates)


def _is_end(rate: float | None, tried: Sequence[float]) -> bool:
    """Return whether a rate is the lowest or highest of several different ones."""
    return len(set(tried)) > 1 and rate in (min(tried), max(tried))


def entries(name: str, preset: Preset, records: Mapping[str, Record]) -> tuple[Entries, int]:
    """Return the entries of a preset that have records, and the number of records that belong to none.

    `records` are by key.
    """
    left = len(records)
    with_records = []
    for planned in plan.entries(name, preset):
        steps = list(tuning.steps(planned, records))
        keys = {training.key for trainings in steps for training in trainings} & records.keys()
        if keys:
            tuned = {training.key for training in steps[-1] if training.is_tuned}
            with_records.append(_entry(planned, [records[key] for key in keys], tuned))
            left -= len(keys)
    tasks: Entries = {}
    with_records.sort(key=lambda entry: (entry.shown.task, entry.shown.trained, entry.shown.method))
    for entry in with_records:
        tasks.setdefault(entry.shown.task, {})[entry.shown.method] = entry
    return tasks, left


def _entry(planned: plan.Entry, known: Iterable[Record], tuned: Collection[str]) -> Entry:
    """Return an entry with its records; `tuned` are the keys of those at its tuned setting, if there is one."""
    records = sorted(known, key=lambda record: (record.seed, record.rate or 0.0, record.head_rate))
    tries = tuple(record for record in records if record.seed == planned.seeds[0])
    if not tuned:
        return Entry(tries, tuple(records), None, planned.labels)
    trainings = tuple(record for record in records if record.key in tuned)
    finished = (record for record in trainings if record.status == FINISHED)
    return Entry(tries, trainings, next(finished, None), planned.labels)


def row(place: str, method: str, entries: Mapping[str, Entry | None], lead: Row) -> Row:
    """Return the row of a method on a task, or on the tasks of an average; None in the place of an entry: not run.

    Scores are percent on the test split, at the epoch selected on the validation split; only seeds that finished on all
    tasks have one. Numbers of parameters are those of the first seed, the largest over tasks, because those of heads
    depend on the number of classes; so do bytes, see `smallest`. What is unknown is None.
    """
    known = [entry for entry in entries.values() if entry]
    is_run = len(known) == len(entries)
    finished = [entry.finished for entry in known]
    scores = _scores(finished, lambda training: PERCENT * training.score()) if is_run else {}
    precision, size, at_size = smallest(known) if is_run else (None, None, [])
    chosen = known[0].chosen if is_run and len(entries) == 1 else None
    trainings = chain.from_iterable(entry.finished or entry.trainings for entry in known)
    seconds = [sum(training.seconds.values()) - training.seconds.get("round", 0) for training in trainings]
    tests = [training.test[training.selected] for training in chain.from_iterable(finished)]
    losses = [metrics["loss"] for metrics in tests if "loss" in metrics]
    return {
        "task": place,
        "method": method,
        "status": _status(known, bool(scores)) if is_run else MISSING,
        "reason": _reason(entries),
        "trainings": max((len(entry.trainings) for entry in known), default=0),  # finished or not
        "scores": scores,  # by seed
        **estimate("score", list(scores.values())),
        "trained": max((entry.shown.trained for entry in known), default=None),  # parameters of the adapter
        "stored": max((entry.shown.stored for entry in known), default=None),  # parameters in its file
        "bytes": size,  # of the smallest file that costs next to nothing
        "precision": precision,  # of that file
        **estimate("score_at_bytes", at_size),
        # Of a whole training run, mean over seeds.
        "seconds": fmean(seconds) if seconds else None,
        **({"loss": fmean(losses)} if losses else {}),  # per token of a completion
        "rate": chosen.rate if chosen else None,
        "rate_at_edge": chosen is not None and known[0].at_edge,
        **lead,  # over the baseline
    }


def _scores(by_task: ByTask, score: Callable[[Record], float]) -> dict[int, float]:
    """Return the mean of a score over tasks by those seeds that have one on all of them."""
    scores = [{training.seed: score(training) for training in trainings} for trainings in by_task]
    seeds = sorted(set.intersection(*map(set, scores)))
    return {seed: fmean(of_task[seed] for of_task in scores) for seed in seeds}


def _status(entries: Sequence[Entry], is_scored: bool) -> str:
    statuses = {entry.status for entry in entries}
    if statuses == {FINISHED}:
        return FINISHED
    return PARTLY if is_scored else min(statuses - {FINISHED, PARTLY}, default="no seed in common")


def _reason(entries: Mapping[str, Entry | None]) -> str:
    missing = [task for task, entry in entries.items() if not entry]
    if missing:
        return "" if len(entries) == 1 else f"on {', '.join(missing)}"
    reasons = {task: entry.reason for task, entry in entries.items() if entry and entry.reason}
    if len(entries) == 1:
        return "".join(reasons.values())
    return "; ".join(f"{task}: {reason}" for task, reason in reasons.items())


def estimate(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return a mean over seeds by its name, and the ends of its 95 % interval by Student's t as `name_low` and `_high`.

    They are mean ± t · std / √n with t of n - 1 degrees of freedom. One seed has no interval, none has no mean.
    """
    mean = fmean(values) if values else None
    if mean is None or len(values) < 2:
        return {name: mean, f"{name}_low": None, f"{name}_high": None}
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


class Files(NamedTuple):
    """The files of a method's training runs, each in several precisions."""

    by_task: ByTask

    def precisions(self) -> list[str]:
        """Return the precisions that all training runs have, full precision before AS_TRAINED."""
        first, *others = chain.from_iterable(self.by_task)
        shared = [name for name in first.rounded if all(name in training.rounded for training in others)]
        return [*shared, AS_TRAINED]

    def validation(self, precision: str) -> float:
        """Return the mean validation score over tasks, of each the mean over seeds, as a fraction."""
        means = []
        for trainings in self.by_task:
            means.append(fmean(_file(training, precision).validation for training in trainings))
        return fmean(means)

    def bytes(self, precision: str) -> int:
        """Return the bytes of the largest file."""
        return max(_file(training, precision).bytes for training in chain.from_iterable(self.by_task))

    def scores(self, precision: str) -> list[float]:
        """Return the mean test score over tasks, in percent, of each seed that all have."""

        def score(training: Record) -> float:
            return _file(training, precision).test[training.metrics[0]]

        return [PERCENT * mean for mean in _scores(self.by_task, score).values()]


def _file(training: Record, precision: str) -> Rounded:
    """Return the file of a training run in a precision."""
    if precision != AS_TRAINED:
        return training.rounded[precision]
    epoch = training.selected
    return Rounded(bytes=training.file_bytes, validation=training.validation[epoch], test=training.test[epoch])


def smallest(entries: Sequence[Entry]) -> tuple[str, int, list[float]]:
    """Return the precision of a method's smallest file that loses at most LOSS, its bytes, and its score by seed.

    The loss is the mean over some tasks and the seeds that were rounded. Bytes are the most of these, because heads
    depend on the number of classes. Scores are percent, of those seeds that finished on all tasks. Where a task has no
    rounded files, everything is as it was trained.
    """
    if not all(entry.finished for entry in entries):
        return AS_TRAINED, max(entry.shown.file_bytes for entry in entries), []
    finished = [entry.finished for entry in entries]
    rounded = [[training for training in trainings if training.rounded] for trainings in finished]
    files = Files(rounded if all(rounded) else finished)
    precisions = files.precisions()
    reference = FULL if FULL in precisions else AS_TRAINED
    least = files.validation(reference) - LOSS
    enough = [precision for precision in precisions if files.validation(precision) > least - ROUNDING]
    chosen = min(enough, key=files.bytes)
    return chosen, files.bytes(chosen), files.scores(chosen)
