"""All that comparison.json and the page hold, computed once. Scores are in percent."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.arena.preset import Preset
from pipeline.arena.record import FOLDER, Record
from pipeline.compare import examples
from pipeline.compare.examples import Parts, Values
from pipeline.compare.leads import ByMethod, ByPart, Judge, Places, Scores
from pipeline.compare.rows import PERCENT, Entries, Entry, Row, entries, row
from pipeline.core.errors import UserError, nearest
from pipeline.tasks.cells import rounded

RESAMPLES = 10_000
DIGITS = 7  # significant ones


def compare(name: str, records: Mapping[str, Record], preset: Preset, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compare the methods with the baseline of their preset, and test its hypotheses; `records` are by key.

    The last of the averages is the main one.

    Raises:
        UserError: if there are no records, or none of the preset as it is, or of the baseline.
    """
    if not records:
        raise UserError(f"{FOLDER / name}: no records; run python -m pipeline.arena {name}")
    tasks, outdated = entries(name, preset, records)
    if not tasks:
        raise UserError(f"{FOLDER / name}: none of the {outdated:,} records is of the settings and texts of the preset")
    methods = _smallest_first(tasks)
    _check_baseline(name, preset.baseline, methods)
    averages, notes = _averages(preset.means, tasks)
    labels, unusable = examples.read(tasks)
    notes.extend(unusable)
    if outdated:
        notes.append(f"{outdated:,} records left out: of other settings than those of the preset")
    scores = {task: _scores(task, methods, labels.get(task), resamples) for task, methods in tasks.items()}
    judge = Judge(scores, {**{task: (task,) for task in tasks}, **averages}, preset.margin)
    comparison = {
        "preset": name,
        "baseline": preset.baseline,
        "metrics": {task: next(iter(methods.values())).shown.metrics[0] for task, methods in tasks.items()},
        "averages": averages,
        "methods": methods,  # smallest first
        "margin": preset.margin,
        "hypotheses": judge.outcomes(preset.hypotheses),
        "made": _made(records.values()),  # where the records come from
        "notes": notes,
        "results": _results(tasks, judge, preset.baseline, methods),
    }
    text = json.dumps(comparison)
    return json.loads(text, parse_float=lambda number: rounded(float(number), DIGITS))  # as a program reads it


def _smallest_first(tasks: Entries) -> list[str]:
    """Return the methods by the most parameters that they train on a task."""
    shown = [entry.shown for methods in tasks.values() for entry in methods.values()]
    shown.sort(key=lambda record: (record.trained, record.method))
    largest = {record.method: record.trained for record in shown}
    return sorted(largest, key=lambda method: (largest[method], method))


def _check_baseline(name: str, baseline: str, methods: Sequence[str]) -> None:
    if baseline not in methods:
        near = nearest(baseline, methods)
        raise UserError(f"--baseline: {name} has no method {baseline!r}{near}; methods: {', '.join(methods)}")


def _results(tasks: Entries, judge: Judge, baseline: str, methods: Iterable[str]) -> list[Row]:
    """Return a row for each task and average, and each method on it."""
    rows = []
    for place, listed in judge.places.items():
        leads = judge.against(baseline, place, methods)
        for method, lead in leads.items():
            on_tasks = {task: tasks[task].get(method) for task in listed}
            rows.append(row(place, method, on_tasks, lead))
    return rows


def _averages(means: Places, tasks: Iterable[str]) -> tuple[Places, list[str]]:
    """Return the averages all of whose tasks have records, and a note for each other one."""
    kept = dict[str, tuple[str, ...]]()
    notes = []
    for name, listed in means.items():
        lacking = [task for task in listed if task not in tasks]
        if lacking:
            notes.append(f"no {name}: no records of {', '.join(lacking)}")
        elif len(listed) > 1:
            kept[name] = listed
    return kept, notes


def _scores(task: str, entries: Mapping[str, Entry], known: Parts | None, resamples: int) -> ByPart:
    """Return the scores of all trainings of a task by part, method and seed, on resamples too if labels are known.

    The parts of a task are those of its labels, or itself if they are not known.
    """
    trainings = [training for entry in entries.values() for training in entry.finished]
    if not trainings:
        return {part: {} for part in known or (task,)}
    whole = [training.score() for training in trainings]
    if known is None:
        drawn = np.array(whole)[:, None].repeat(resamples, axis=1)
        return {task: _by_method(trainings, whole, drawn)}
    metric = trainings[0].metrics[0]
    parts = dict[str, ByMethod]()
    for part, labels in known.items():
        if len(known) > 1:
            whole = [examples.score(metric, training, {part: labels}) for training in trainings]
        predicted = [examples.predicted_of(training, labels) for training in trainings]
        drawn = examples.resampled(part, metric, labels.to_numpy(), predicted, resamples)
        parts[part] = _by_method(trainings, whole, drawn)
    return parts


def _by_method(trainings: Iterable[Record], whole: Iterable[float], resampled: Iterable[Values]) -> ByMethod:
    """Return the scores of training runs, fractions on all examples and on each resample, by method and seed."""
    scores: dict[str, dict[int, Scores]] = {}
    for training, score, drawn in zip(trainings, whole, resampled, strict=True):
        scores.setdefault(training.method, {})[training.seed] = Scores(PERCENT * score, PERCENT * drawn)
    return scores


def _made(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values of each field of the records' `made`, by name; of dates only the first and the last."""
    made = pd.DataFrame([record.made for record in records])
    values = {name: sorted(made[name].dropna().unique()) for name in sorted(made)}
    return values | {"date": sorted({values["date"][0], values["date"][-1]})}
