"""A method on a task: the tries that tuned its learning rate, and the trainings at that rate with all seeds."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

from pipeline.arena.record import Record

FINISHED, PARTLY, MISSING = "finished", "partly finished", "not run"


class Entry(NamedTuple):
    """A method on a task. If no try finished, there is no chosen record, and `trainings` are all records."""

    task: str
    method: str
    tries: tuple[Record, ...]  # with the first seed, one per pair of rates
    trainings: tuple[Record, ...]  # with the chosen rates, by seed, including those that did not finish
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
        return Counter(training.status for training in self.trainings).most_common(1)[0][0]

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


def entries(records: Iterable[Record], tuning: Collection[int]) -> tuple[dict[str, dict[str, Entry]], int]:
    """Return the entries by task and method, smallest method first, and the number of outdated records.

    `tuning` are the seeds whose validation score chooses the rates. A preset may have changed: if a method on a task
    has records with different settings, the newest settings count, of those of one day the ones that are read last.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.method), []).append(record)
    left = {name: list(_newest_form(group)) for name, group in groups.items()}
    dropped = sum(map(len, groups.values())) - sum(map(len, left.values()))
    listed = [_entry(*name, group, tuning) for name, group in left.items()]
    tasks: dict[str, dict[str, Entry]] = {}
    for entry in sorted(listed, key=lambda entry: (entry.task, entry.shown.trained, entry.method)):
        tasks.setdefault(entry.task, {})[entry.method] = entry
    return tasks, dropped


def _entry(task: str, method: str, group: Sequence[Record], tuning: Collection[int]) -> Entry:
    trainings = sorted(group, key=lambda one: (one.seed, one.rate or 0.0, one.head_rate))
    tries = [record for record in trainings if record.seed == trainings[0].seed]
    chosen = _chosen(trainings, tuning)
    trainings = [record for record in trainings if chosen is None or record.tuned == chosen.tuned]
    return Entry(task, method, tuple(tries), tuple(trainings), chosen)


def _chosen(trainings: Sequence[Record], tuning: Collection[int]) -> Record | None:
    """Return a training at the tuned setting: that with the most seeds, among equals with the best validation score."""
    settings: dict[Any, list[Record]] = {}
    for training in trainings:
        settings.setdefault(training.tuned, []).append(training)

    def order(group: Sequence[Record]) -> tuple[int, float]:
        return len(group), fmean([training.held_out for training in group if training.seed in tuning] or [-inf])

    best = max(settings.values(), key=order)
    return next((training for training in best if training.status == FINISHED), None)


def _newest_form(group: Sequence[Record]) -> Iterator[Record]:
    forms: dict[str, list[Record]] = {}
    for record in group:
        forms.setdefault(record.form, []).append(record)
    newest = max(reversed(forms.values()), key=lambda form: max(map(_date, form)))
    once: dict[tuple[Any, int], Record] = {}
    for record in sorted(newest, key=lambda one: (one.status == FINISHED, _date(one), one.key)):
        once[record.tuned, record.seed] = record
    yield from once.values()


def _date(record: Record) -> str:
    return record.made.get("date", "")
