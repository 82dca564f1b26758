"""The last layer of a trained head, which has a row for each output."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.serve.admission import heads_in
from lsr.serve.shared_adapter import last_layer
from lsr.tuner.files import PREFIX, Files, read_files
from pipeline.core import artifacts
from pipeline.tasks.groups import Group
from pipeline.tasks.task import Numbers

AT_ONCE = 2**22  # entries of the rows of examples that are in memory at the same time


def last_layer_of(model: PeftModel, layer: str) -> nn.Linear:
    """Return the head's last layer, by its name in the base model, as it is trained: PEFT has it inside a wrapper."""
    named = {}
    for name, module in model.named_modules():
        name_in_base = name.replace(".modules_to_save.default", "")
        named[name_in_base] = module
    trained = named[f"{PREFIX}{layer}"]
    assert isinstance(trained, nn.Linear)
    return trained


def last_layer_of_base(base: PreTrainedModel) -> nn.Linear:
    """Return the last layer of the head of a model without an adapter."""
    layer = base.get_submodule(heads_in(base)[-1])
    assert isinstance(layer, nn.Linear)
    return layer


def find_last_layer(model: PeftModel) -> nn.Linear:
    """Return the head's last layer as it is trained, of a model whose adapter need not be in a folder."""
    fields = model.peft_config["default"].to_dict()
    files = Files(Path(), fields, get_peft_model_state_dict(model, save_embedding_layers=False))
    return last_layer_of(model, last_layer(files))


@contextmanager
def return_inputs(layer: nn.Module) -> Iterator[None]:
    """Let a layer return its inputs in place of its outputs."""
    with layer.register_forward_hook(lambda module, inputs, output: inputs[0]):
        yield


@torch.no_grad()
def scale_head(model: PeftModel, temperatures: Tensor) -> None:
    """Divide the outputs of the head of the model that artifacts/init began by temperatures, (1,) or (outputs,)."""
    layer = last_layer_of(model, last_layer(read_files(artifacts.INIT)))
    divisors = temperatures.to(layer.weight.device)
    layer.weight.div_(divisors[:, None])
    if layer.bias is not None:
        layer.bias.div_(divisors)


class Rows(NamedTuple):
    """The rows of all outputs of a head, on the CPU."""

    weight: Tensor  # (outputs, width)
    bias: Tensor | None  # (outputs,)

    def logits(self, features: Tensor, outputs: Tensor) -> Tensor:
        """Return the logits (examples, labels) of the outputs (examples, labels) for features (examples, width)."""
        count = max(1, AT_ONCE // (outputs.shape[1] * features.shape[1]))
        parts = list[Tensor]()
        for some, own in zip(features.split(count), outputs.split(count), strict=True):
            logits = torch.einsum("nd,nkd->nk", some, self.weight[own])
            parts.append(logits if self.bias is None else logits + self.bias[own])
        return torch.cat(parts)

    def select(self, outputs: Numbers) -> Self:
        """Return the rows of these outputs."""
        rows = torch.from_numpy(outputs)
        bias = None if self.bias is None else self.bias[rows]
        return type(self)(self.weight[rows], bias)


class GroupHead(NamedTuple):
    """The trained rows of a group: those of a tenant without a deviation."""

    group: Group
    rows: Rows  # in the order of the group's labels
    temperature: float | None  # divisor that the rows still need; None without probabilities
    kept: float  # the share of its tenants' deviations that is kept
