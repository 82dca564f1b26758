"""Numbers are learned in standard deviations from their mean, so that learning rates fit labels in any unit.

While a head is trained, the parameters of its last layer predict such deviations, and the layer converts its outputs to
the units of the labels. Before and after, the parameters themselves predict labels: an adapter has no other form. The
mean and the standard deviation are those of the training split. Without a bias, a layer cannot predict the mean for any
text: it predicts labels in units of their root mean square.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.methods import heads
from pipeline.tasks import Task
from pipeline.tasks.facts import LabelScale


class LabelUnits(NamedTuple):
    """Convert what the parameters of a layer predict: a label is `offset` plus `factor` times a standardized label."""

    offset: float
    factor: float

    @classmethod
    def of(cls, layer: nn.Linear, scale: LabelScale) -> Self:
        """Return the units in which a layer with or without a bias learns labels of this scale."""
        if layer.bias is None:
            return cls(0.0, math.hypot(scale.mean, scale.deviation))
        return cls(scale.mean, scale.deviation)

    def to_labels(self, standardized: Tensor) -> Tensor:
        """Convert standardized labels, in at least float32: a large mean leaves lower precisions no digits."""
        precise = torch.promote_types(standardized.dtype, torch.float32)
        return standardized.to(precise) * self.factor + self.offset

    @torch.no_grad()
    def convert_to_labels(self, layer: nn.Linear) -> None:
        """Let the parameters of a layer that predict standardized labels predict labels."""
        layer.weight.mul_(self.factor)
        if layer.bias is not None:
            layer.bias.mul_(self.factor).add_(self.offset)

    @torch.no_grad()
    def convert_to_standardized(self, layer: nn.Linear) -> None:
        """Let the parameters of a layer that predict labels predict standardized ones."""
        layer.weight.div_(self.factor)
        if layer.bias is not None:
            layer.bias.sub_(self.offset).div_(self.factor)


def center_head(base: PreTrainedModel, task: Task) -> None:
    """Let a new head predict numbers around the mean of the labels, as far apart as a new head predicts classes."""
    scale = task.facts.label_scale
    if scale is not None:
        layer = heads.last_layer_of_base(base)
        LabelUnits.of(layer, scale).convert_to_labels(layer)


@contextmanager
def standardize_numbers(task: Task, find_layer: Callable[[], nn.Linear]) -> Iterator[LabelUnits | None]:
    """Let the last layer of a head learn standardized numbers, while a model is trained.

    Yields the units; None if there are no numbers to standardize: then no layer is looked for.
    """
    scale = task.facts.label_scale
    if scale is None:
        yield None
        return
    with standardize(find_layer(), scale) as units:
        yield units


@contextmanager
def standardize(layer: nn.Linear, scale: LabelScale) -> Iterator[LabelUnits]:
    """Let the parameters of a layer predict standardized labels, and the layer still predict labels."""
    units = LabelUnits.of(layer, scale)
    units.convert_to_standardized(layer)
    try:
        with layer.register_forward_hook(lambda module, inputs, outputs: units.to_labels(outputs)):
            yield units
    finally:
        units.convert_to_labels(layer)
