"""Records as the arena leaves them, of trainings that nobody ran."""

import hashlib
import json

import numpy as np

from pipeline.arena.preset import PATH, Preset
from pipeline.arena.record import FOLDER, Record, append, labels_path
from pipeline.core.artifacts import write_csv
from pipeline.tasks import scores
from tests.kit import write

MADE = {
    "commit": "0123456789abcdef",
    "date": "2026-11-26T10:00:00+00:00",
    "cpu": "a processor, 2 cores",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "peft": "0.21.2",
}
RATES = (0.0005, 0.002, 0.008)
EXAMPLES = 200
TASKS = {  # metrics, by task
    "cola": ("matthews_correlation", "accuracy"),
    "rte": ("accuracy",),
    "stsb": ("pearson", "spearman"),
}
SIZES = {  # adapter, overrides, trained, how often it is right
    "head alone": ("head", {}, 0, 0.62),
    "LSR 200": ("lsr", {"lsr.budget": 200}, 200, 0.84),
    "LSR r=3": ("lsr", {"lsr.rank_shape": [3], "lsr.share": "layers"}, 4716, 0.85),
    "VeRA": ("vera", {"vera.r": 256}, 7680, 0.79),
    "LoRA r=1": ("lora", {"lora.r": 1, "lora.lora_alpha": 2}, 9216, 0.83),
    "LoRA r=2": ("lora", {"lora.r": 2, "lora.lora_alpha": 4}, 18432, 0.845),
    "LoRA r=8": ("lora", {"lora.r": 8, "lora.lora_alpha": 16}, 73728, 0.87),
    "every weight": ("full", {}, 22713216, 0.88),
}

PRESET = {
    "model": "minilm",
    "tasks": {task: {} for task in TASKS},
    "seeds": [0, 1, 2, 3, 4],
    "baseline": "LoRA r=1",
    "tuning": {"rates": [1.0], "wider": 0, "head_rates": []},
    "reads": {"train": "all", "validation": "all", "test": "all", "longest": "all"},
    "params": {},
    "methods": {method: {"adapter": adapter} for method, (adapter, *_) in SIZES.items()},
}


def preset(**changes):
    return Preset.model_validate(PRESET | changes)


def labels(task, examples=EXAMPLES):
    rng = np.random.default_rng(len(task))
    return np.round(rng.uniform(0, 5, examples), 1) if task == "stsb" else rng.integers(0, 2, examples).astype(float)


def predictions(task, right, rng, examples=EXAMPLES):
    actual = labels(task, examples)
    if task == "stsb":
        return np.round(actual + rng.normal(0, 6 * (1 - right), examples), 4)
    return np.where(rng.random(examples) < right, actual, 1 - actual)


def record(method="LoRA r=1", task="rte", rate=0.002, seed=0, status="finished", reason="", **changes):
    """One training; what is not said is made from the rest, the same every time."""
    adapter, overrides, trained, right = SIZES.get(method, ("lora", {}, 1000, 0.8))
    adapter, overrides = changes.get("adapter", adapter), changes.pop("overrides", overrides)
    key = hashlib.sha256(json.dumps([method, task, rate, seed, changes.get("key")]).encode()).hexdigest()[:16]
    rng = np.random.default_rng(int(key, 16) % 2**32)
    right -= {0.0005: 0.05, 0.008: 0.02}.get(rate, 0.0)
    epochs = [predictions(task, right + 0.02 * step, rng) for step in (-2, -1, 0)] if status == "finished" else []
    test = [scores.score(TASKS[task], one, labels(task)) for one in epochs]
    validation = [float(np.clip(right + 0.01 * step + rng.normal(0, 0.01), 0, 1)) for step in range(len(epochs))]
    fields = {
        "key": key,
        "preset": "small",
        "task": task,
        "method": method,
        "adapter": adapter,
        "reads": {"train": "all", "validation": "all", "test": "all", "longest": "all"},
        "overrides": {
            **overrides,
            "adapter": adapter,
            "data": task,
            "model": "minilm",
            "seed": seed,
            "train.epochs": 3,
            "train.head_learning_rate": 0.002,
            **({} if adapter == "head" else {f"{adapter}.learning_rate": rate}),
        },
        "rate": None if adapter == "head" else rate,
        "head_rate": 0.002,
        "seed": seed,
        "status": status,
        "reason": reason,
        "metrics": TASKS[task],
        "validation": validation,
        "test": test,
        "loss": [0.6, 0.5, 0.4][: len(epochs)],
        "predicted": [],
        "trained": trained,
        "stored": trained,
        "head": 770,
        "file_bytes": 4 * (trained + 770) + 500,
        "seconds": {"load": 1.0, "start": 0.5, "train": 20 + trained**0.25, "score": 2.0},
        "peak_bytes": 1_200_000_000 + 10 * trained,
        "made": MADE,
    }
    made = Record.model_validate_json(json.dumps(fields | changes))
    if not epochs or "predicted" in changes:
        return made
    return made.model_copy(update={"predicted": tuple(map(float, epochs[made.selected]))})


def trainings(methods=tuple(SIZES), tasks=tuple(TASKS), seeds=(0, 1, 2, 3, 4)):
    """Every method on every task: three rates with the first seed, the best one with the others; some go wrong."""
    found = []
    for task in tasks:
        for method in methods:
            rates = (0.002,) if method == "head alone" else RATES
            tries = [record(method, task, rate, seeds[0]) for rate in rates]
            if method == "VeRA" and task == "cola":
                tries = [record(method, task, rate, 0, "diverged", "the loss is no finite number") for rate in rates]
            elif method == "LSR r=3":
                tries[-1] = record(method, task, rates[-1], 0, "diverged", "the loss is no finite number")
            finished = [one for one in tries if one.status == "finished"]
            found += tries
            if finished:
                chosen = max(finished, key=lambda one: max(one.validation))
                rest = [record(method, task, chosen.rate or 0.002, seed) for seed in seeds[1:]]
                if method == "LSR 200" and task == "rte" and rest:
                    rest[-1] = record(method, task, chosen.rate, seeds[-1], "failed", "not enough memory")
                found += rest
    return found


def save(records, preset="small", tasks=TASKS):
    """Write a preset, its records and labels as the arena does, into the current folder."""
    write(PATH, {preset: PRESET | {"tasks": {task: {} for task in tasks or TASKS}}})
    for one in records:
        append(FOLDER / preset / "records.jsonl", one.model_copy(update={"preset": preset}))
    for task in tasks:
        save_labels(task, preset)


def save_labels(task, preset="small", examples=EXAMPLES):
    write_csv(labels_path(preset, task), ["label"], [[label] for label in labels(task, examples).tolist()])
