"""A method on a task: the tries that tuned its learning rate, and the trainings at that rate with all seeds."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.arena import plan, tuning
from pipeline.arena.preset import Preset
from pipeline.arena.record import Record

FINISHED, PARTLY, UNTUNED, MISSING = "finished", "partly finished", "not tuned yet", "not run"
Entries = dict[str, dict[str, "Entry"]]  # by task and method, smallest method first


class Entry(NamedTuple):
    """A method on a task. Without a tuned setting there is no chosen record, and `trainings` are all records."""

    task: str
    method: str
    tries: tuple[Record, ...]  # with the first seed, one per pair of rates
    trainings: tuple[Record, ...]  # at the tuned setting, by seed, including those that did not finish
    chosen: Record | None

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
        tried = [set(column) - {None} for column in zip(*(one.tuned for one in self.tries), strict=True)]
        chosen = zip(self.chosen.tuned, tried, strict=True)
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
            found.append(_entry(planned, [one.key for one in steps[-1] if one.is_tuned], known))
    tasks: Entries = {}
    for entry in sorted(found, key=lambda entry: (entry.task, entry.shown.trained, entry.method)):
        tasks.setdefault(entry.task, {})[entry.method] = entry
    return tasks, left


def _entry(planned: plan.Entry, tuned: list[str], known: Mapping[str, Record]) -> Entry:
    every = sorted(known.values(), key=lambda one: (one.seed, one.rate or 0.0, one.head_rate))
    tries = tuple(record for record in every if record.seed == planned.seeds[0])
    trainings = tuple(record for record in every if not tuned or record.key in tuned)
    finished = (record for record in trainings if tuned and record.status == FINISHED)
    return Entry(planned.task, planned.method, tries, trainings, next(finished, None))
