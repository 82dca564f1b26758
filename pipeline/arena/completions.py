"""What a language model writes on a task, and what its base model writes alone, which no method or seed changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset

from pipeline import evaluation, tasks
from pipeline.arena import task_tokens
from pipeline.arena.plan import Training
from pipeline.data import base_models, tokens
from pipeline.methods import device
from pipeline.tasks import CompletionTask, Outcome
from pipeline.tasks.completion import Written

AT_ONCE = 64  # prompts
LOGITS_AT_ONCE = 16  # examples, of whose tokens all logits are in memory


def outcomes(training: Training, model: Any, splits: Mapping[str, Dataset]) -> dict[str, Outcome]:
    """Return the losses of validation, and those of test with what a model writes for its prompts."""
    view, count = training.view, training.reads.new_tokens
    task, tokenizer = tasks.of(view.dataset), base_models.load_tokenizer(view.base_model)
    assert isinstance(task, CompletionTask)
    assert count is not None  # the tokens are read before
    held_out, test = splits["validation"], splits["test"]
    # As the Trainer has it: that of a model which no Trainer has is no other.
    with torch.autocast(device.device_of(model).type, torch.bfloat16, enabled=view.train.precision == "bf16"):
        outputs = evaluation.outputs(task, model, held_out, task.collator(tokenizer), LOGITS_AT_ONCE)
        written = evaluation.written(task, model, test, task.prompts(tokenizer), count, AT_ONCE)
    return {"validation": evaluation.outcome(outputs, held_out), "test": written}


def alone(training: Training, splits: Mapping[str, Dataset]) -> dict[str, Outcome]:
    """Return the outcomes of the base model without an adapter, from the cache if they are there."""
    view = training.view

    def write(path: Path) -> None:
        base = base_models.load_base_model(view.base_model, view.dataset)
        found = outcomes(training, device.place(base), splits)
        said = list(cast("Written", found["test"]).said)
        torch.save(({split: one.outputs for split, one in found.items()}, said), path)

    path = task_tokens.cached("base", (task_tokens.known(training), view.train.precision), write)
    outputs, said = torch.load(path, weights_only=True)
    written = Written(outputs["test"], tokens.labels_of(splits["test"]), None, said)
    return {"validation": evaluation.outcome(outputs["validation"], splits["validation"]), "test": written}
