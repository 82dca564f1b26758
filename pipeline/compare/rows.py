"""The rows of the tables: a method on a task, or on several whose mean is taken."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.compare.entries import FINISHED, MISSING, PARTLY, Entry
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


def row(place: str, method: str, entries: Mapping[str, Entry | None]) -> Row:
    """Return the row of a method on a task, or on the tasks of an average; None in the place of an entry: not run.

    Only seeds that finished on all tasks have a score. Numbers of parameters are those of the first seed, the largest
    over tasks, because those of heads depend on the number of classes; so do bytes, see `smallest`.
    """
    known = [entry for entry in entries.values() if entry]
    is_run = len(known) == len(entries)
    by_task = [{one.seed: PERCENT * one.score() for one in entry.finished} for entry in known]
    seeds = sorted(set.intersection(*map(set, by_task))) if is_run else []
    scores = {seed: fmean(one[seed] for one in by_task) for seed in seeds}
    every = [one for entry in known for one in entry.finished or entry.trainings]
    precision, size, at_size = smallest(known) if is_run else (None, None, [])
    chosen = known[0].chosen if is_run and len(entries) == 1 else None
    return Row(
        task=place,
        method=method,
        status=_status(known, bool(scores)) if is_run else MISSING,
        reason=_reason(entries),
        trainings=max((len(entry.trainings) for entry in known), default=0),
        scores=scores,
        score=estimate(list(scores.values())),
        trained=_largest(entry.shown.trained for entry in known),
        stored=_largest(entry.shown.stored for entry in known),
        head=_largest(entry.shown.head for entry in known),
        bytes=size,
        precision=precision,
        score_at_bytes=estimate(at_size),
        seconds=fmean(sum(one.seconds.values()) - one.seconds.get("round", 0) for one in every) if every else None,
        peak_bytes=_largest(one.peak_bytes for one in every),
        rate=chosen.rate if chosen else None,
        rate_at_edge=chosen is not None and known[0].at_edge,
    )


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


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
