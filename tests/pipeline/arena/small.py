"""A preset that runs in seconds: a tiny RoBERTa, made-up sentences, two epochs, two seeds."""

from typing import Any

from pipeline.arena.preset import PATH
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
    kit.write(PATH, {"small": workspace.merged(SMALL, changes)})
