"""A preset that runs in seconds: a tiny RoBERTa, made-up sentences, two epochs, two seeds; and made-up records."""

from typing import Any

from pipeline.arena import plan, preset
from pipeline.arena.record import Record, Rounded
from tests import kit, workspace

LSR = {"lsr.rank_shape": [2], "lsr.separation_rank": 1, "lsr.share": "layers", "lsr.train": "all", "lsr.init": "update"}
SMALL: dict[str, Any] = {
    "model": "tiny",
    "tasks": {"glue": {}, "ratings": {"params": {"train.epochs": 1}}},
    "seeds": [0, 1],
    "baseline": "LoRA r=1",
    "tuning": {"rates": [0.5, 1.0], "wider": 0, "head_rates": []},
    "reads": {"train": 48, "validation": 16, "test": 20, "longest": 24},
    "params": {"train.epochs": 2, "train.batch_size": 16, "lsr.examples": 16, "lsr.head_steps": 2},
    "methods": {
        "head": {"adapter": "head"},
        "LoRA r=1": {"adapter": "lora", "params": {"lora.r": 1, "lora.lora_alpha": 2}},
        "LSR shared r=2": {"adapter": "lsr", "params": LSR},
    },
}


def use(**changes: Any) -> None:
    """Write the preset `small`, some of it changed, into the working directory, which is a workspace."""
    kit.write(preset.PATH, {"small": workspace.merged(SMALL, changes)})


def entry(title="glue: LoRA r=1"):
    """Return the entry of the preset `small` that has this title."""
    [chosen] = plan.entries("small", preset.load("small"), [title])
    return chosen


def training(title="glue: LoRA r=1", seed=0, **setting):
    return entry(title).training(plan.Setting(**setting), seed)


def recorded(training, score):
    """Return a record of a training with a validation score, or one each of validation and test; None: it diverged."""
    validation, test = score if isinstance(score, tuple) else (score, score)
    scores = {} if validation is None else {"validation": (validation,), "test": ({"accuracy": test},)}
    return Record(
        **{name: getattr(training, name) for name in ("key", "preset", "task", "method", "rate", "head_rate", "seed")},
        **scores,
        status="finished" if scores else "diverged",
        reason="" if scores else "the loss is nan",
        metrics=("accuracy",),
        rounded={"2bit": Rounded(bytes=200, validation=0.5, test={"accuracy": 0.5})} if training.is_rounded else {},
        seconds={},
        made={},
    )
