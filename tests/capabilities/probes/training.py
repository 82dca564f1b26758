"""Fresh adapters and training."""

from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from tests.capabilities.behavior import EVERY, Behavior
from tests.capabilities.checks import base_weights, check, loss, same, same_base, train, trainable
from tests.capabilities.models import LABELS, logits, tiny, tokens
from tests.capabilities.subjects import Subject


def _fresh(subject: Subject, folder: Path) -> None:
    same(logits(subject.fresh()), logits(tiny(subject.model)), "a fresh adapter changes the model")


def _training(subject: Subject, folder: Path) -> None:
    model = subject.fresh()
    before = base_weights(model)
    losses, moved = train(model, steps=25)
    check(losses[-1] < 0.98 * losses[0], "training does not lower the loss")
    check(all(moved.values()), "a trainable tensor never had a gradient")
    same_base(before, model, "training changed the base weights")


def _checkpointing(subject: Subject, folder: Path) -> None:
    for reentrant in (False, True):
        gradients = []
        for checkpointing in (False, True):
            model = subject.stirred().train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            loss(model).backward()
            gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
        plain, checkpointed = gradients
        for name, gradient in plain.items():
            check(checkpointed[name] is not None, f"{name} has no gradient")
            assert_close(checkpointed[name], gradient)


def _trainer(subject: Subject, folder: Path) -> None:
    rows = [{name: ids[row] for name, ids in tokens().items()} for row in range(4)]
    for row, example in enumerate(rows):
        example["labels"] = example["input_ids"] if subject.is_causal else torch.tensor(row % LABELS)
    runs = []
    for checkpoint in (None, str(folder / "one" / "checkpoint-2")):
        arguments = TrainingArguments(
            str(folder / ("two" if checkpoint else "one")),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            seed=0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        model = subject.fresh()
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append(get_peft_model_state_dict(model))
    whole, resumed = runs
    for name, value in whole.items():
        same(resumed[name], value, f"a resumed training ends with another {name}")


BEHAVIORS = {
    "a fresh adapter changes no bit": Behavior(_fresh, EVERY),
    "training moves all of it, and no base weight": Behavior(_training),
    "`Trainer`: training, resumed from a checkpoint": Behavior(_trainer, shown_on="llama-causal"),
    "gradient checkpointing, frozen embeddings": Behavior(_checkpointing),
}
