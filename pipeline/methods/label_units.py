"""Numbers are learned in standard deviations from their mean, so that learning rates fit labels in any unit.

While a head is trained, the parameters of its last layer predict such deviations, and the layer converts its outputs to
the units of the labels. Before and after, the parameters themselves predict labels: an adapter has no other form. The
mean and the standard deviation are those of the training split. Without a bias, a layer cannot predict the mean for any
text: it predicts labels in units of their root mean square.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.serve.admission import heads_in
from pipeline.methods import heads
from pipeline.tasks import Task
from pipeline.tasks.facts import LabelScale


class Units(NamedTuple):
    """Convert what the parameters of a layer predict: a label is `zero` plus `one` times a standardized label."""

    zero: float
    one: float

    @classmethod
    def of(cls, layer: nn.Linear, scale: LabelScale) -> Self:
        """Return the units in which a layer with or without a bias learns labels of this scale."""
        if layer.bias is None:
            return cls(0.0, math.hypot(scale.mean, scale.deviation))
        return cls(scale.mean, scale.deviation)

    def to_labels(self, standardized: Tensor) -> Tensor:
        """Convert standardized labels, in at least float32: a large mean leaves lower precisions no digits."""
        precise = torch.promote_types(standardized.dtype, torch.float32)
        return standardized.to(precise) * self.one + self.zero

    @torch.no_grad()
    def convert_to_labels(self, layer: nn.Linear) -> None:
        """Let the parameters of a layer that predict standardized labels predict labels."""
        layer.weight.mul_(self.one)
        if layer.bias is not None:
            layer.bias.mul_(self.one).add_(self.zero)

    @torch.no_grad()
    def convert_to_standardized(self, layer: nn.Linear) -> None:
        """Let the parameters of a layer that predict labels predict standardized ones."""
        layer.weight.div_(self.one)
        if layer.bias is not None:
            layer.bias.sub_(self.zero).div_(self.one)


def find_layer(base: PreTrainedModel) -> nn.Linear:
    """Return the last layer of the head of a model without an adapter."""
    layer = base.get_submodule(heads_in(base)[-1])
    assert isinstance(layer, nn.Linear)
    return layer


def center_head(base: PreTrainedModel, task: Task) -> None:
    """Let a new head predict numbers around the mean of the labels, as far apart as a new head predicts classes."""
    scale = task.facts.label_scale
    if scale is not None:
        layer = find_layer(base)
        Units.of(layer, scale).convert_to_labels(layer)


@contextmanager
def standardize_base(base: PreTrainedModel, task: Task) -> Iterator[Units | None]:
    """Let the head of a model without an adapter learn standardized numbers, for a short run of an initialization.

    Yields the units; None if there are no numbers to standardize.
    """
    scale = task.facts.label_scale
    if scale is None:
        yield None
        return
    with standardize(find_layer(base), scale) as units:
        yield units


@contextmanager
def standardize_head(model: PeftModel, task: Task) -> Iterator[Units | None]:
    """Let the head of a model with an adapter learn standardized numbers, for training.

    Yields the units; None if there are no numbers to standardize.
    """
    scale = task.facts.label_scale
    if scale is None:
        yield None
        return
    with standardize(heads.find_last_layer(model), scale) as units:
        yield units


@contextmanager
def standardize(layer: nn.Linear, scale: LabelScale) -> Iterator[Units]:
    """Let the parameters of a layer predict standardized labels, and the layer still predict labels."""
    units = Units.of(layer, scale)
    units.convert_to_standardized(layer)
    try:
        with layer.register_forward_hook(lambda module, inputs, outputs: units.to_labels(outputs)):
            yield units
    finally:
        units.convert_to_labels(layer)
