"""All that comparison.json and the page hold, computed once. Scores are in percent."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.arena.preset import Preset
from pipeline.arena.record import FOLDER, Record
from pipeline.compare import examples
from pipeline.compare.examples import Parts
from pipeline.compare.leads import ByPart, Judge, Places, Scores
from pipeline.compare.rows import PERCENT, Entry, entries, row
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
    every = [(entry.shown.trained, method) for of in tasks.values() for method, entry in of.items()]
    sizes = {method: size for size, method in sorted(every)}  # the largest of each method
    methods, baseline = sorted(sizes, key=lambda name: (sizes[name], name)), preset.baseline
    if baseline not in methods:
        near = nearest(baseline, methods)
        raise UserError(f"--baseline: {name} has no method {baseline!r}{near}; methods: {', '.join(methods)}")
    averages, notes = _averages(preset.means, tasks)
    places = {**{task: (task,) for task in tasks}, **averages}
    known, unusable = examples.read(tasks)
    notes += unusable
    if outdated:
        notes.append(f"{outdated:,} records left out: of other settings than those of the preset")
    scores = {task: _scores(task, of, known.get(task), resamples) for task, of in tasks.items()}
    judge = Judge(scores, places, preset.margin)
    found = {
        "preset": name,
        "baseline": baseline,
        "metrics": {task: next(iter(of.values())).shown.metrics[0] for task, of in tasks.items()},
        "averages": averages,
        "methods": methods,  # smallest first
        "margin": preset.margin,
        "hypotheses": judge.outcomes(preset.hypotheses),
        "made": _made(records.values()),  # where the records come from
        "notes": notes,
        "results": [
            row(place, method, {task: tasks[task].get(method) for task in of}, said)
            for place, of in places.items()
            for method, said in judge.against(baseline, place, methods).items()
        ],
    }
    return json.loads(json.dumps(found), parse_float=lambda text: rounded(float(text), DIGITS))  # as a program reads it


def _averages(means: Places, tasks: Iterable[str]) -> tuple[Places, list[str]]:
    """Return the averages all of whose tasks have records, and a note for each other one."""
    lacking = {name: [task for task in of if task not in tasks] for name, of in means.items()}
    kept = {name: of for name, of in means.items() if len(of) > 1 and not lacking[name]}
    return kept, [f"no {name}: no records of {', '.join(tasks)}" for name, tasks in lacking.items() if tasks]


def _scores(task: str, entries: Mapping[str, Entry], known: Parts | None, resamples: int) -> ByPart:
    """Return the scores of all trainings of a task by part, method and seed, on resamples too if labels are known.

    The parts of a task are those of its labels, or itself if they are not known.
    """
    trainings = [training for entry in entries.values() for training in entry.finished]
    parts: dict[str, dict[str, dict[int, Scores]]] = {part: {} for part in known or (task,)}
    for part, listed in parts.items() if trainings else ():
        whole = [training.score() for training in trainings]
        drawn = np.array(whole)[:, None].repeat(resamples, axis=1)
        if known is not None:
            metric, its = trainings[0].metrics[0], known[part]
            predicted = [examples.predicted_of(training, its) for training in trainings]
            drawn = examples.resampled(part, metric, its.to_numpy(), predicted, resamples)
            if len(known) > 1:
                whole = [examples.score(metric, one, {part: its}) for one in trainings]
        for training, score, resampled in zip(trainings, whole, drawn, strict=True):
            listed.setdefault(training.method, {})[training.seed] = Scores(PERCENT * score, PERCENT * resampled)
    return parts


def _made(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values of each field of the records' `made`, by name; of dates only the first and the last."""
    made = pd.DataFrame([record.made for record in records])
    values = {name: sorted(made[name].dropna().unique()) for name in sorted(made)}
    return values | {"date": sorted({values["date"][0], values["date"][-1]})}
