"""`adapter: regression`: a regression in place of training, which becomes the last layer of the model's head.

Its features are the inputs of that layer: the state of the first or last token, after any pooling and other layers of
the model's head in their initial state. So each reader of adapters answers as for a trained head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from pipeline import regression
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.methods import heads
from pipeline.methods.device import fastest
from pipeline.params import PARAMS, TrainView
from pipeline.regression import Linear, Part
from pipeline.tasks import Task
from pipeline.training.history import History


class Unscored(nn.Module):
    """A model whose `logits` are the inputs of its head's last layer for each text, (n, width)."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tenant: Tensor | None = None, **inputs: Tensor) -> Any:
        """Return the model's output; the logits of all tenants are left as they are."""
        return self.model(**inputs)


def fit_head(
    view: TrainView,
    task: Task,
    model: PeftModel,
    layer: Any,  # the last one of the head
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
) -> History:
    """Fit the last layer of a model's head, and return the history of a training run: losses and score.

    Raises:
        UserError: if no regression fits the task type; if the layer has no bias, and train lacks a class.
    """
    if not regression.can_fit(task):
        raise UserError(f"{PARAMS}: adapter: regression: no regression fits this task type; choose another section")
    parts = _read(view, task, model, layer, splits, collate)
    layers = regression.fit_parts(task, parts["train"], parts["validation"], has_bias=layer.bias is not None)
    _put(layer, layers)
    outcome = regression.predict(layers, parts["validation"])
    scores = task.tune_thresholds(outcome).scoring.scores(outcome)
    score = scores[task.scoring.decides]
    log = [
        {"step": 0, "loss": _loss(task, layers, parts["train"])},
        {"step": 0, "eval_loss": _loss(task, layers, parts["validation"]), "eval_score": score},
    ]
    return History(log, read=len(splits["train"]), best_step=0, steps=0, best_score=score)


def _read(
    view: TrainView,
    task: Task,
    model: PeftModel,
    layer: nn.Module,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
) -> dict[str, Part]:
    """Return the layer's input features of each example, by split."""
    unscored = Unscored(model).to(fastest())
    total = sum(map(len, splits.values()))
    with (
        console.progress("train, regression on the frozen model", total, "examples") as advance,
        heads.return_inputs(layer),
    ):
        return regression.read_parts(task, unscored, splits, collate, view.train.batch_size, advance)


def _put(layer: Any, layers: Mapping[str, Linear]) -> None:
    """Put the regressions, of one tenant after another, into the layer.

    Raises:
        UserError: if the layer has no bias, and train lacks a class.
    """
    weight = torch.cat([torch.from_numpy(own.weight) for own in layers.values()])
    bias = torch.cat([torch.from_numpy(own.bias) for own in layers.values()])
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        elif bias.any():
            raise UserError(f"{PARAMS}: adapter: regression: the head has no bias, and a class has no row in train")


def _loss(task: Task, layers: Mapping[str, Linear], part: Part) -> float:
    """Return the mean loss over tenants or, without tenants, over examples; of numbers in units of their variance."""
    scale = task.facts.label_scale
    unit = 1.0 if scale is None else scale.deviation**2
    losses = list[float]()
    for name, layer in layers.items():
        features, labels = part.of(name)
        if len(labels):
            loss = regression.estimator_of(task).loss(layer.outputs(features), torch.from_numpy(labels))
            losses.append(float(loss) / unit)
    return sum(losses) / len(losses)
