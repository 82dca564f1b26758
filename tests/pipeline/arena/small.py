"""A preset that runs in seconds: a tiny RoBERTa, made-up sentences, two epochs, two seeds; and made-up records."""

from pathlib import Path
from typing import Any

from pipeline.arena import plan, preset
from pipeline.arena.record import Quantized, Record
from tests import kit, workspace

SMALL: dict[str, Any] = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))
LSR = SMALL["methods"]["LSR shared r=2"]["params"]


def use(**changes: Any) -> None:
    """Write the preset `small`, some of it changed, into the working directory, which is a workspace."""
    kit.write(preset.PATH, {"small": workspace.merged(SMALL, changes)})


def cell(title="glue: LoRA r=1"):
    """Return the cell of the preset `small` that has this title."""
    [chosen] = plan.cells("small", preset.load("small"), [title])
    return chosen


def training(title="glue: LoRA r=1", seed=0, **setting):
    return cell(title).training(plan.Multipliers(**setting), seed)


def recorded(training, score):
    """Return a record of a training with a validation score, or one each of validation and test; None: it diverged."""
    validation, test = score if isinstance(score, tuple) else (score, score)
    scores = {} if validation is None else {"validation": (validation,), "test": ({"accuracy": test},)}
    return Record(
        **{
            name: getattr(training, name)
            for name in ("key", "preset", "task", "method", "rate", "head_rate", "epochs", "seed")
        },
        **scores,
        status="finished" if scores else "diverged",
        reason="" if scores else "the loss is nan",
        metrics=("accuracy",),
        quantized={"2bit": Quantized(bytes=200, validation=0.5, test={"accuracy": 0.5})}
        if training.is_quantized
        else {},
        seconds={},
        made={},
    )
