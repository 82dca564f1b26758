"""The rows of the tables: a method on a task, or on several whose mean is taken."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipeline.compare.entries import FINISHED, MISSING, PARTLY, Entry
from pipeline.compare.estimates import PERCENT, estimate
from pipeline.compare.precision import smallest
from pipeline.compare.verdicts import Verdict

Row = dict[str, Any]


def row(place: str, method: str, entries: Mapping[str, Entry | None], verdict: Verdict) -> Row:
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
        "rate": chosen.rate if chosen else None,
        "rate_at_edge": chosen is not None and known[0].at_edge,
        "verdict": verdict.verdict,
        **verdict._asdict(),  # against the baseline
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
