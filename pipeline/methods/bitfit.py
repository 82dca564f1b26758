"""BitFit as a PEFT method: every bias of the base model is trainable, as a shift of its pretrained value.

Shifts are initialized to zero, so weight decay pulls towards the pretrained biases, which stay unchanged, not to zero.

Reference: Ben Zaken et al. 2021, "BitFit" (arXiv 2106.10199).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.methods.plugin import PluginLayer, PluginTuner, register

ADDED = (nn.Linear, nn.LayerNorm, Conv1D)  # layers whose bias is added to the output


@dataclass
class BitfitConfig(PeftConfig):
    """Configuration of the trainable biases."""

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of the layers with a bias."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of layers to leave out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved in full."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = cast("list[str]", set(self.target_modules))


class Shift(nn.Module):
    """The value added to a bias."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(like.shape, device=like.device))


class BitfitLayer(PluginLayer):
    """A layer whose bias is shifted by each active adapter."""

    adapter_layer_names = ("bitfit_shifts",)
    updated = "bias"

    def __init__(self, base_layer: nn.Module) -> None:
        if not isinstance(base_layer, ADDED) or base_layer.bias is None:
            raise TypeError(
                f"BitFit shifts the bias of a layer that adds one, but this is of {type(base_layer).__name__}"
            )
        super().__init__(base_layer)
        self.bitfit_shifts = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: BitfitConfig) -> None:
        """Add an adapter."""
        self.bitfit_shifts[adapter_name] = Shift(self._parameter())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def update(self, adapter_name: str) -> Tensor:  # the shape of the bias
        """Return the shift of an adapter."""
        return cast("Shift", self.bitfit_shifts[adapter_name]).bias

    def added(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return the shift, which is added to the output as it is."""
        return self.update(adapter_name)


class BitfitModel(PluginTuner):
    """A base model whose biases are shifted."""

    prefix = "bitfit_"
    tuner_layer_cls = BitfitLayer

    def _new_layer(self, target: nn.Module) -> PluginLayer:
        return BitfitLayer(target)


def biased_layers(model: nn.Module, head: Sequence[str]) -> list[str]:
    """Return the layers outside the head that have a bias.

    Raises:
        ValueError: if there is none, or a layer does anything but add the bias to its output.
    """
    outside = [(name, module) for name, module in model.named_modules() if name.partition(".")[0] not in head]
    found = {name: module for name, module in outside if getattr(module, "bias", None) is not None}
    for name, module in found.items():
        if not isinstance(module, ADDED):
            raise ValueError(f"{name} is of {type(module).__name__}, whose bias cannot be shifted")
    if not found:
        raise ValueError("the base model has no bias")
    return list(found)


register("BITFIT", BitfitConfig, BitfitModel)
