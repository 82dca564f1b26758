"""BitFit as a PEFT method: every bias of the base model is trainable, as a shift of its pretrained value.

Shifts are initialized to zero, so weight decay pulls towards the pretrained biases, which stay unchanged, not to zero.

Reference: Ben Zaken et al. 2021, "BitFit" (arXiv 2106.10199).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.methods.plugin import PluginTuner, register

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


class BitfitLayer(nn.Module, BaseTunerLayer):
    """A layer whose bias is shifted by each active adapter."""

    adapter_layer_names = ("bitfit_shifts",)

    def __init__(self, base_layer: nn.Module) -> None:
        if not isinstance(base_layer, ADDED) or base_layer.bias is None:
            raise TypeError(
                f"BitFit shifts the bias of a layer that adds one, but this is of {type(base_layer).__name__}"
            )
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.bitfit_shifts = nn.ModuleDict()
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BitfitConfig) -> None:
        """Add an adapter."""
        self.bitfit_shifts[adapter_name] = Shift(self._base_bias())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the shifts of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.bitfit_shifts:
                result = result + self._shift(name).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the shifts of the named, or active, adapters to the bias.

        Raises:
            ValueError: with `safe_merge`, if a shifted bias would not be finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.bitfit_shifts:
                bias = self._base_bias()
                shifted = bias.data + self._shift(name).detach().to(bias.dtype)
                if safe_merge and not torch.isfinite(shifted).all():
                    raise ValueError(f"the bias shifted by adapter {name!r} is not finite")
                bias.data = shifted
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract the merged shifts."""
        while self.merged_adapters:
            bias = self._base_bias()
            bias.data -= self._shift(self.merged_adapters.pop()).detach().to(bias.dtype)

    def _base_bias(self) -> Tensor:
        return cast("Tensor", self.base_layer.bias)

    def _shift(self, adapter_name: str) -> Tensor:
        return cast("Shift", self.bitfit_shifts[adapter_name]).bias


class BitfitModel(PluginTuner):
    """A base model whose biases are shifted."""

    prefix = "bitfit_"
    tuner_layer_cls = BitfitLayer

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, BitfitLayer) else BitfitLayer(target)
        if layer is not target:
            layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, cast("BitfitConfig", peft_config))
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # a second adapter is not active yet
            self._replace_module(parent, target_name, layer, target)


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
