"""A method on a task: the tries that tuned its learning rate, and the trainings at that rate with all seeds."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

from pipeline.arena.record import Record

FINISHED, PARTLY, MISSING = "finished", "partly finished", "not run"


class Cell(NamedTuple):
    """A method on a task. If no try finished, there is no chosen record, and `runs` are all records."""

    task: str
    method: str
    tries: tuple[Record, ...]  # with the first seed, one per pair of rates
    runs: tuple[Record, ...]  # with the chosen rates, by seed, including those that did not finish
    chosen: Record | None

    @property
    def finished(self) -> tuple[Record, ...]:
        """The trainings over which means are taken."""
        return tuple(run for run in self.runs if run.status == FINISHED) if self.chosen else ()

    @property
    def status(self) -> str:
        """The status of all seeds together: finished, partly finished, or the most common other status."""
        if self.chosen:
            return FINISHED if len(self.finished) == len(self.runs) else PARTLY
        return Counter(run.status for run in self.runs).most_common(1)[0][0]

    @property
    def reason(self) -> str:
        """Which seeds did not finish and why, in one line; seeds with the same reason are listed together."""
        reasons: dict[str, list[str]] = {}
        for run in self.runs:
            if run.status != FINISHED:
                rate = "" if self.chosen else f" at {run.rate or run.head_rate:g}"
                reasons.setdefault(f"{run.status}: {run.reason}", []).append(f"seed {run.seed}{rate}")
        return "; ".join(f"{', '.join(which)}: {reason}" for reason, which in reasons.items())

    @property
    def shown(self) -> Record:
        """The record with the settings and sizes of the method: the chosen one, or the first."""
        return self.chosen or self.runs[0]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried, so that one beyond may be better."""
        if self.chosen is None:
            return False
        tried = [set(column) - {None} for column in zip(*(one.tuned for one in self.tries), strict=True)]
        chosen = zip(self.chosen.tuned, tried, strict=True)
        return any(len(rates) > 1 and rate in (min(rates), max(rates)) for rate, rates in chosen)


def cells(records: Iterable[Record], tuning: Collection[int]) -> tuple[dict[str, dict[str, Cell]], int]:
    """Return the cells by task and method, smallest method first, and the number of outdated records.

    `tuning` are the seeds whose validation score chooses the rates. A preset may have changed: if a method on a task
    has records with different settings, the newest settings count, of those of one day the ones that are read last.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.method), []).append(record)
    left = {name: list(_newest_form(group)) for name, group in groups.items()}
    dropped = sum(map(len, groups.values())) - sum(map(len, left.values()))
    listed = [_cell(*name, group, tuning) for name, group in left.items()]
    tasks: dict[str, dict[str, Cell]] = {}
    for cell in sorted(listed, key=lambda cell: (cell.task, cell.shown.trained, cell.method)):
        tasks.setdefault(cell.task, {})[cell.method] = cell
    return tasks, dropped


def _cell(task: str, method: str, group: Sequence[Record], tuning: Collection[int]) -> Cell:
    runs = sorted(group, key=lambda one: (one.seed, one.rate or 0.0, one.head_rate))
    tries = [record for record in runs if record.seed == runs[0].seed]
    chosen = _chosen(runs, tuning)
    runs = [record for record in runs if chosen is None or record.tuned == chosen.tuned]
    return Cell(task, method, tuple(tries), tuple(runs), chosen)


def _chosen(runs: Sequence[Record], tuning: Collection[int]) -> Record | None:
    """Return a training at the tuned setting: that with the most seeds, among equals with the best validation score."""
    settings: dict[Any, list[Record]] = {}
    for run in runs:
        settings.setdefault(run.tuned, []).append(run)

    def order(group: Sequence[Record]) -> tuple[int, float]:
        return len(group), fmean([run.held_out for run in group if run.seed in tuning] or [-inf])

    best = max(settings.values(), key=order)
    return next((run for run in best if run.status == FINISHED), None)


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
