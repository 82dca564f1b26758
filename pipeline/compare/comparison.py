"""The contents of the tables and the page, computed once. Scores are in percent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.arena.preset import Preset
from pipeline.arena.record import Record
from pipeline.compare import bootstrap, labels
from pipeline.compare.entries import Entry, entries
from pipeline.compare.estimates import PERCENT
from pipeline.compare.leads import Scores
from pipeline.compare.rows import Row, row
from pipeline.compare.verdicts import Judge, Outcome, Places
from pipeline.core.errors import UserError, nearest

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """A comparison of methods on the tasks of a preset and on its averages, the main one last."""

    preset: str
    baseline: str
    metrics: Mapping[str, str]  # by task
    averages: Places
    methods: tuple[str, ...]  # smallest first
    rows: Mapping[str, Mapping[str, Row]]  # by task or average, and method
    margin: float  # percentage points within which methods are equivalent
    hypotheses: Sequence[Outcome]
    made: Mapping[str, list[str]]  # where the records come from
    notes: Sequence[str]  # that a reader should know
    resamples: int

    @property
    def main(self) -> str:
        """The average that a reader sees first; the task if there is none."""
        return list(self.rows)[-1]


def compare(name: str, records: Sequence[Record], preset: Preset, resamples: int = RESAMPLES) -> Comparison:
    """Compare the methods of the records with the baseline of their preset, and test its hypotheses.

    Raises:
        UserError: if there is no such baseline.
    """
    tasks, dropped = entries(records, preset.seeds[: preset.tuning.seeds])
    methods, baseline = _methods(tasks), preset.baseline
    if baseline not in methods:
        near = nearest(baseline, methods)
        raise UserError(f"--baseline: {name} has no method {baseline!r}{near}; methods: {', '.join(methods)}")
    averages, lacking = _averages(preset.means, tasks)
    places = {**{task: (task,) for task in tasks}, **averages}
    known, unusable = labels.read(name, tasks)
    scores = {task: _scores(of, known.get(task), resamples) for task, of in tasks.items()}
    judge = Judge(scores, places, preset.margin)
    rows = {
        place: {
            method: row(place, method, {task: tasks[task].get(method) for task in of})._replace(verdict=verdict)
            for method, verdict in judge.against(baseline, place, methods).items()
        }
        for place, of in places.items()
    }
    outdated = [f"{dropped:,} records left out: repeated, or from earlier settings of their method"] if dropped else []
    return Comparison(
        preset=name,
        baseline=baseline,
        metrics={task: next(iter(of.values())).shown.metrics[0] for task, of in tasks.items()},
        averages=averages,
        methods=methods,
        rows=rows,
        margin=preset.margin,
        hypotheses=judge.outcomes(preset.hypotheses),
        made=_made(records),
        notes=[*lacking, *unusable, *outdated],
        resamples=resamples,
    )


def _averages(means: Places, tasks: Iterable[str]) -> tuple[Places, list[str]]:
    """Return the averages all of whose tasks have records, and a note for each other one."""
    lacking = {name: [task for task in of if task not in tasks] for name, of in means.items()}
    kept = {name: of for name, of in means.items() if len(of) > 1 and not lacking[name]}
    return kept, [f"no {name}: no records of {', '.join(tasks)}" for name, tasks in lacking.items() if tasks]


def _scores(
    entries: Mapping[str, Entry], known: NDArray[np.float64] | None, resamples: int
) -> dict[str, dict[int, Scores]]:
    """Return the scores of all trainings of a task by method and seed, on resamples too if its labels are known."""
    trainings = [training for entry in entries.values() for training in entry.finished]
    drawn = np.array([training.score() for training in trainings])[:, None].repeat(resamples, axis=1)
    if trainings and known is not None:
        predicted = [np.array(training.predicted) for training in trainings]
        drawn = bootstrap.scores(trainings[0].task, trainings[0].metrics[0], known, predicted, resamples)
    listed: dict[str, dict[int, Scores]] = {}
    for training, resampled in zip(trainings, drawn, strict=True):
        listed.setdefault(training.method, {})[training.seed] = Scores(PERCENT * training.score(), PERCENT * resampled)
    return listed


def _methods(tasks: Mapping[str, Mapping[str, Entry]]) -> tuple[str, ...]:
    """Return all methods, sorted by largest size."""
    every = [entry for of in tasks.values() for entry in of.values()]
    sizes = {entry.method: entry.shown.trained for entry in sorted(every, key=lambda entry: entry.shown.trained)}
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


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
