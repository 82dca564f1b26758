"""A method on a task, by the trainings that count, and the rows of the tables: on one, or on the mean of several."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from scipy import stats

from pipeline.arena import plan, tuning
from pipeline.arena.preset import Preset
from pipeline.arena.record import Record, Rounded
from pipeline.compare.leads import CONFIDENCE
from pipeline.tasks.sums import ROUNDING

FINISHED, PARTLY, UNTUNED, MISSING = "finished", "partly finished", "not tuned yet", "not run"
PERCENT = 100.0
FULL, AS_TRAINED = "float32", "as trained"  # the second is all that is known of trainings that were not rounded
LOSS = 0.002  # of the validation score, a fraction, of which page.html tells
Row = dict[str, Any]
Entries = dict[str, dict[str, "Entry"]]  # by task and method, smallest method first


class Entry(NamedTuple):
    """A method on a task. Without a tuned setting there is no chosen record, and `trainings` are all records."""

    tries: tuple[Record, ...]  # with the first seed, one per pair of rates
    trainings: tuple[Record, ...]  # at the tuned setting, by seed, including those that did not finish
    chosen: Record | None
    labels: Path

    @property
    def finished(self) -> tuple[Record, ...]:
        """The trainings over which means are taken."""
        return tuple(training for training in self.trainings if training.status == FINISHED) if self.chosen else ()

    @property
    def status(self) -> str:
        """The status of all seeds together: finished, partly finished, or the most common other status."""
        if self.chosen:
            return FINISHED if len(self.finished) == len(self.trainings) else PARTLY
        (status, _), *_ = Counter(training.status for training in self.trainings).most_common()
        return UNTUNED if any(training.status == FINISHED for training in self.trainings) else status

    @property
    def reason(self) -> str:
        """Which seeds did not finish and why, in one line; seeds with the same reason are listed together."""
        reasons: dict[str, list[str]] = {}
        for training in self.trainings:
            if training.status != FINISHED:
                rate = "" if self.chosen else f" at {training.rate or training.head_rate:g}"
                reasons.setdefault(f"{training.status}: {training.reason}", []).append(f"seed {training.seed}{rate}")
        return "; ".join(f"{', '.join(which)}: {reason}" for reason, which in reasons.items())

    @property
    def shown(self) -> Record:
        """The record with the settings and sizes of the method: the chosen one, or the first."""
        return self.chosen or self.trainings[0]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried, so that one beyond may be better."""
        if self.chosen is None:
            return False
        tried = {one.rate for one in self.tries if one.rate}, {one.head_rate for one in self.tries}
        chosen = zip((self.chosen.rate, self.chosen.head_rate), tried, strict=True)
        return any(len(rates) > 1 and rate in (min(rates), max(rates)) for rate, rates in chosen)


def entries(name: str, preset: Preset, records: Mapping[str, Record]) -> tuple[Entries, int]:
    """Return the entries of a preset that have records, and the number of records that belong to none.

    `records` are by key.
    """
    left, found = len(records), []
    for planned in plan.entries(name, preset):
        steps = list(tuning.steps(planned, records))
        known = {one.key: records[one.key] for trainings in steps for one in trainings if one.key in records}
        left -= len(known)
        if known:
            every = sorted(known.values(), key=lambda one: (one.seed, one.rate or 0.0, one.head_rate))
            tries = tuple(record for record in every if record.seed == planned.seeds[0])
            tuned = [one.key for one in steps[-1] if one.is_tuned]
            trainings = tuple(record for record in every if not tuned or record.key in tuned)
            finished = (record for record in trainings if tuned and record.status == FINISHED)
            found.append(Entry(tries, trainings, next(finished, None), planned.labels))
    tasks: Entries = {}
    for entry in sorted(found, key=lambda entry: (entry.shown.task, entry.shown.trained, entry.shown.method)):
        tasks.setdefault(entry.shown.task, {})[entry.shown.method] = entry
    return tasks, left


def row(place: str, method: str, entries: Mapping[str, Entry | None], said: Row) -> Row:
    """Return the row of a method on a task, or on the tasks of an average; None in the place of an entry: not run.

    Scores are percent on the test split, at the epoch selected on the validation split; only seeds that finished on all
    tasks have one. Numbers of parameters are those of the first seed, the largest over tasks, because those of heads
    depend on the number of classes; so do bytes, see `smallest`. What is unknown is None.
    """
    known = [entry for entry in entries.values() if entry]
    is_run = len(known) == len(entries)
    by_task = [{one.seed: PERCENT * one.score() for one in entry.finished} for entry in known]
    seeds = sorted(set.intersection(*map(set, by_task))) if is_run else []
    scores = {seed: fmean(one[seed] for one in by_task) for seed in seeds}
    every = [one for entry in known for one in entry.finished or entry.trainings]
    precision, size, at_size = smallest(known) if is_run else (None, None, [])
    chosen = known[0].chosen if is_run and len(entries) == 1 else None
    losses = [one.test[one.selected]["loss"] for entry in known for one in entry.finished if "loss" in one.test[0]]
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
        # Of a whole training, mean over seeds.
        "seconds": fmean(sum(one.seconds.values()) - one.seconds.get("round", 0) for one in every) if every else None,
        **({"loss": fmean(losses)} if losses else {}),  # per token of a completion
        "rate": chosen.rate if chosen else None,
        "rate_at_edge": chosen is not None and known[0].at_edge,
        **said,  # of its lead over the baseline
    }


def _status(entries: Sequence[Entry], is_scored: bool) -> str:
    statuses = {entry.status for entry in entries}
    if statuses == {FINISHED}:
        return FINISHED
    return PARTLY if is_scored else min(statuses - {FINISHED, PARTLY}, default="no seed in common")


def _reason(entries: Mapping[str, Entry | None]) -> str:
    if missing := [task for task, entry in entries.items() if not entry]:
        return "" if len(entries) == 1 else f"on {', '.join(missing)}"
    reasons = {task: entry.reason for task, entry in entries.items() if entry and entry.reason}
    return "; ".join(reason if len(entries) == 1 else f"{task}: {reason}" for task, reason in reasons.items())


def estimate(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return a mean over seeds by its name, and the ends of its 95 % interval by Student's t as `name_low` and `_high`.

    They are mean ± t · std / √n with t of n - 1 degrees of freedom. One seed has no interval, none has no mean.
    """
    mean, low, high = fmean(values) if values else None, None, None
    if mean is not None and len(values) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def smallest(entries: Sequence[Entry]) -> tuple[str, int, list[float]]:
    """Return the precision of a method's smallest file that loses at most LOSS, its bytes, and its score by seed.

    The loss is the mean over some tasks and the seeds that were rounded. Bytes are the most of these, because heads
    depend on the number of classes. Scores are percent, of those seeds that finished on all tasks. Where a task has no
    rounded files, everything is as it was trained.
    """
    if not all(entry.finished for entry in entries):
        return AS_TRAINED, max(entry.shown.file_bytes for entry in entries), []
    rounded = [[one for one in entry.finished if one.rounded] for entry in entries]
    chosen_trainings = rounded if all(rounded) else [entry.finished for entry in entries]
    by_seeds = [{one.seed: _files(one) for one in trainings} for trainings in chosen_trainings]
    every = [files for by_seed in by_seeds for files in by_seed.values()]
    validation = {
        name: fmean(fmean(files[name].validation for files in by_seed.values()) for by_seed in by_seeds)
        for name in every[0]
        if all(name in files for files in every)
    }
    least = validation.get(FULL, validation[AS_TRAINED]) - LOSS
    enough = [name for name, score in validation.items() if score > least - ROUNDING]
    sizes = {name: max(files[name].bytes for files in every) for name in enough}
    chosen = min(enough, key=lambda name: sizes[name])
    scores = [
        PERCENT
        * fmean(of[seed][chosen].test[entry.shown.metrics[0]] for of, entry in zip(by_seeds, entries, strict=True))
        for seed in sorted(set.intersection(*map(set, by_seeds)))
    ]
    return chosen, sizes[chosen], scores


def _files(one: Record) -> dict[str, Rounded]:
    whole = Rounded(bytes=one.file_bytes, validation=one.validation[one.selected], test=one.test[one.selected])
    return {**one.rounded, AS_TRAINED: whole}  # last, so that full precision goes before it
