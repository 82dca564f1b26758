"""Records as the arena leaves them, of trainings that nobody ran."""

import json
import zlib
from pathlib import Path
from statistics import fmean

import numpy as np

from pipeline.arena import plan, tuning
from pipeline.arena.preset import PATH, Preset
from pipeline.arena.record import FOLDER, Record, append
from pipeline.core.artifacts import write_csv
from pipeline.tasks import scores
from tests.kit import write
from tests.workspace import copy_committed, read_yaml

EXAMPLES = 200
LABELS = FOLDER / "small/labels"
TASKS = {  # metrics, by task
    "cola": ("matthews_correlation", "accuracy"),
    "rte": ("accuracy",),
    "stsb": ("pearson", "spearman"),
}
LOST = "the loss is no finite number"
SIZES = {  # how many numbers a method trains, and how often it is right
    "head alone": (0, 0.62),
    "LSR 200": (200, 0.84),
    "LSR r=3": (4716, 0.85),
    "VeRA": (7680, 0.79),
    "LoRA r=1": (9216, 0.83),
    "LoRA r=2": (18432, 0.845),
    "LoRA r=8": (73728, 0.87),
    "every weight": (22713216, 0.88),
}
PRESET = read_yaml(Path(__file__).with_name("preset.yaml"))


def preset(tasks=tuple(TASKS), methods=tuple(SIZES), **changes):
    chosen = {method: PRESET["methods"][method] for method in methods}
    return Preset.model_validate(PRESET | {"tasks": {task: {} for task in tasks}, "methods": chosen} | changes)


def labels(task, examples=EXAMPLES):
    rng = np.random.default_rng(len(task))
    return np.round(rng.uniform(0, 5, examples), 1) if task == "stsb" else rng.integers(0, 2, examples).astype(float)


def predictions(task, right, rng):
    actual = labels(task)
    if task == "stsb":
        return np.round(actual + rng.normal(0, 6 * (1 - right), EXAMPLES), 4)
    return np.where(rng.random(EXAMPLES) < right, actual, 1 - actual)


def record(method="LoRA r=1", task="rte", rate=0.002, seed=0, status="finished", reason="", **changes):
    """One training; what is not said is made from the rest, the same every time."""
    trained, right = SIZES[method]
    rng = np.random.default_rng(zlib.crc32(json.dumps([method, task, rate, seed]).encode()))
    epochs = [predictions(task, right + 0.02 * step, rng) for step in (-2, -1, 0)] if status == "finished" else []
    fields = {
        "key": "0" * 16,
        "preset": "small",
        "task": task,
        "method": method,
        "rate": rate,
        "head_rate": 0.002,
        "seed": seed,
        "status": status,
        "reason": reason,
        "metrics": TASKS[task],
        "validation": [right + 0.01 * step + rng.normal(0, 0.005) for step in range(len(epochs))],
        "test": [scores.score(TASKS[task], one, labels(task)) for one in epochs],
        "trained": trained,
        "stored": trained,
        "file_bytes": 4 * (trained + 770) + 500,
        "seconds": {"load": 1.0, "start": 0.5, "train": 20 + trained**0.25, "score": 2.0},
        "made": {"commit": "0123456789ab", "date": "2026-11-26", "cpu": "a processor"},
    }
    made = Record.model_validate(fields | changes)
    return made.model_copy(update={"predicted": tuple(epochs[made.selected].tolist())}) if epochs else made


def went(one, **changes):
    """The record of a planned training."""
    return record(one.method, one.task, one.rate, one.seed, key=one.key, head_rate=one.head_rate, **changes)


def trainings(chosen, said=went):
    """All records of a preset, by key, each of them what is `said` of a training."""
    records = {}
    for cell in plan.cells("small", chosen):
        while left := tuning.missing(cell, records):
            records |= {one.key: said(one) for one in left}
    return records


def some_go_wrong(one):
    if (one.method, one.task) == ("VeRA", "cola"):
        return went(one, status="diverged", reason=LOST)
    if (one.method, one.task, one.seed) == ("LSR 200", "rte", 4):
        return went(one, status="failed", reason="not enough memory")
    return went(one)


def with_means(records, whose):
    """Return records whose scores are means over tenants."""
    for key, one in records.items():
        right = np.array(one.predicted) == labels(one.task)
        score = fmean(float(right[whose == name].mean()) for name in np.unique(whose))
        test = [{"accuracy": score} for _ in one.test]
        yield key, one.model_copy(update={"test": tuple(test)})


def prepare(folder, chosen=None, records=None):
    """Make a folder, the current one, in which the arena has run; labels are those of all tasks."""
    copy_committed(folder)
    for task in TASKS:
        save_labels(task)
    if chosen:
        write(PATH, {"small": chosen.model_dump(mode="json", exclude_unset=True)})
        for one in trainings(chosen).values() if records is None else records:
            append(FOLDER / "small" / "records.jsonl", one)


def save_labels(task, examples=EXAMPLES, **columns):
    columns = {"label": labels(task, examples).tolist(), **columns}
    write_csv(LABELS / f"{task}.csv", list(columns), zip(*columns.values(), strict=True))
