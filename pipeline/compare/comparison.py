"""Compute the contents of comparison.json and the page. Scores are in percent."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.arena.preset import Preset
from pipeline.arena.record import FOLDER, Record
from pipeline.compare import examples
from pipeline.compare.differences import ByMethod, ByPart, Comparator, Places, Scores
from pipeline.compare.examples import Parts, Values
from pipeline.compare.rows import PERCENT, Cell, Cells, Row, cells, row
from pipeline.core.errors import UserError, nearest
from pipeline.tasks.cells import round_significant

RESAMPLES = 10_000
DIGITS = 7  # significant ones


def compare(
    name: str,
    records: Mapping[str, Record],
    preset: Preset,
    resamples: int = RESAMPLES,
) -> Row:
    """Compare the methods with the baseline of their preset, and test its hypotheses; `records` are by key.

    The last of the averages is the main one.

    Raises:
        UserError: if there are no records of the present preset, or of the baseline.
    """
    if not records:
        raise UserError(f"{FOLDER / name}: no records; run python -m pipeline.arena {name}")
    tasks, outdated = cells(name, preset, records)
    if not tasks:
        raise UserError(f"{FOLDER / name}: none of the {outdated:,} records is of the settings and texts of the preset")
    methods = _smallest_first(tasks)
    _check_baseline(name, preset.baseline, methods)
    averages, notes = _averages(preset.means, tasks)
    labels, unusable = examples.read(tasks)
    notes.extend(unusable)
    if outdated:
        notes.append(f"{outdated:,} records left out: of other settings than those of the preset")
    scores = {}
    for task, cells_of_task in tasks.items():
        scores[task] = _scores(task, cells_of_task.values(), labels.get(task), resamples)
    alone = {task: (task,) for task in tasks}
    comparator = Comparator(scores, {**alone, **averages}, preset.margin)
    comparison = {
        "preset": name,
        "baseline": preset.baseline,
        "metrics": _metrics(tasks),
        "averages": averages,
        "methods": methods,  # smallest first
        "margin": preset.margin,
        "hypotheses": comparator.outcomes(preset.hypotheses),
        "made": _collect_provenance(records.values()),  # provenance of the records
        "notes": notes,
        "results": _results(tasks, comparator, preset.baseline, methods),
    }
    return json.loads(json.dumps(comparison), parse_float=_shorter)  # equals what a program reads from the file


def _shorter(number: str) -> float:
    return round_significant(float(number), DIGITS)


def _metrics(tasks: Cells) -> dict[str, str]:
    """Return the metric that scores each task."""
    metrics = {}
    for task, methods in tasks.items():
        first = next(iter(methods.values()))
        metrics[task] = first.shown.metrics[0]
    return metrics


def _smallest_first(tasks: Cells) -> list[str]:
    """Return the methods ordered by the maximum number of trained parameters."""
    largest = dict[str, int]()
    for methods in tasks.values():
        for method, cell in methods.items():
            largest[method] = max(cell.shown.trained, largest.get(method, 0))
    return sorted(largest, key=lambda method: (largest[method], method))


def _check_baseline(name: str, baseline: str, methods: Sequence[str]) -> None:
    if baseline not in methods:
        near = nearest(baseline, methods)
        known = ", ".join(methods)
        raise UserError(f"--baseline: {name} has no method {baseline!r}{near}; methods: {known}")


def _results(
    tasks: Cells,
    comparator: Comparator,
    baseline: str,
    methods: Sequence[str],
) -> list[Row]:
    """Return a row per task or average and method."""
    rows = []
    for place, listed in comparator.places.items():
        differences = comparator.versus(baseline, place, methods)
        for method, difference in differences.items():
            cells = {task: tasks[task].get(method) for task in listed}
            rows.append(row(place, method, cells, difference))
    return rows


def _averages(means: Places, tasks: Iterable[str]) -> tuple[Places, list[str]]:
    """Return the averages whose tasks all have records, and a note for each other average."""
    kept = {}
    notes = []
    for name, listed in means.items():
        lacking = [task for task in listed if task not in tasks]
        if lacking:
            notes.append(f"no {name}: no records of {', '.join(lacking)}")
        elif len(listed) > 1:
            kept[name] = listed
    return kept, notes


def _scores(
    task: str,
    cells: Iterable[Cell],
    known: Parts | None,
    resamples: int,
) -> ByPart:
    """Return the scores of a task's training runs by part, method and seed; with labels, also on resamples.

    Without labels, the task is its only part.
    """
    trainings = examples.select_finished(cells)
    if not trainings:
        return {part: {} for part in known or (task,)}
    whole = [training.score() for training in trainings]
    if known is None:
        without_labels = [np.full(resamples, score) for score in whole]
        return {task: _by_method(trainings, whole, without_labels)}
    metric = trainings[0].metrics[0]
    parts = {}
    for part, labels in known.items():
        if len(known) > 1:
            whole = [examples.score(metric, training, {part: labels}) for training in trainings]
        predicted = [examples.get_predictions(training, labels) for training in trainings]
        groups = examples.get_groups(labels)
        drawn = examples.resample(part, metric, labels.to_numpy(), predicted, resamples, groups)
        parts[part] = _by_method(trainings, whole, drawn)
    return parts


def _by_method(
    trainings: Iterable[Record],
    whole: Iterable[float],
    resampled: Iterable[Values],
) -> ByMethod:
    """Return the scores of training runs, fractions on all examples and on each resample, by method and seed."""
    by_method = defaultdict[str, dict[int, Scores]](dict)
    for training, score, drawn in zip(trainings, whole, resampled, strict=True):
        scores = Scores(PERCENT * score, PERCENT * drawn)
        by_method[training.method][training.seed] = scores
    return by_method


def _collect_provenance(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values per field of the records' `made`; only the first and the last date."""
    made = pd.DataFrame([record.made for record in records])
    values = {}
    for name in sorted(made):
        values[name] = sorted(made[name].dropna().unique())
    dates = values["date"]
    values["date"] = sorted({dates[0], dates[-1]})
    return values
