"""Frozen weights in the dtype of mixed precision, rounded once for the whole training.

Autocast caches only rounded copies of trained weights, and rounds frozen ones at every use. For a frozen model these
are all the weights, at every step: 22 % of a step's time on two cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from pipeline.methods import table
from pipeline.params import PeftParams


class _Rounded(NamedTuple):
    """A frozen parameter, the state that identifies its values, and the rounded values."""

    parameter: nn.Parameter
    state: tuple[int, int]
    values: Tensor


class RoundedWeights:
    """Rounded copies that replace a model's frozen weights inside `applied`, without changing the results of a step.

    They replace the weights and biases of linear layers that are used in products only, and take half their memory.
    """

    def __init__(self, model: PeftModel, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.rounded: list[_Rounded] = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the copies in place; afterwards the weights are restored bit for bit."""
        # Merging and unmerging, as for an evaluation, may have changed the values of a parameter, or replaced it.
        if not self.rounded or any(_state(one.parameter) != one.state for one in self.rounded):
            self.rounded = [
                _Rounded(parameter, _state(parameter), parameter.detach().to(self.dtype))
                for parameter in _only_multiplied(self.model)
            ]
        kept = [one.parameter.data for one in self.rounded]
        for parameter, _, values in self.rounded:
            parameter.data = values
        try:
            yield
        finally:
            for (parameter, _, _), values in zip(self.rounded, kept, strict=True):
                parameter.data = values


def _state(parameter: nn.Parameter) -> tuple[int, int]:
    return parameter.data_ptr(), parameter._version


def _only_multiplied(model: PeftModel) -> Iterator[nn.Parameter]:
    """Yield the frozen float32 parameters of linear layers, except those that an adapter may read."""
    linear = {id(module) for module in model.modules() if type(module) is nn.Linear}
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):  # trains a copy of the module that it wraps
            linear -= {id(unused) for unused in module.original_module.modules()}
    if _may_read_weights(model):
        wrapped = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
        linear -= {id(module.get_base_layer()) for module in wrapped}
    others = {id(p) for module in model.modules() if id(module) not in linear for p in module.parameters(recurse=False)}
    for module in model.modules():
        if id(module) in linear:
            for parameter in module.parameters(recurse=False):
                is_frozen = not parameter.requires_grad and parameter.dtype is torch.float32
                if is_frozen and id(parameter) not in others:  # such as a weight shared with embeddings
                    yield parameter


def _may_read_weights(model: PeftModel) -> bool:
    """Return whether an adapter may read a base weight: DoRA does, and methods without a section might."""
    is_other = table.method_of(model) is table.METHODS[PeftParams]
    return is_other or bool(getattr(model.peft_config["default"], "use_dora", False))
