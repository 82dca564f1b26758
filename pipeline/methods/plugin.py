"""Shared code of the methods that PEFT lacks and this package adds: layers, insertion into a model, registration."""

from typing import Any, cast

import torch
from aenum import extend_enum
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import ModulesToSaveWrapper, register_peft_method
from torch import Tensor, nn


class PluginLayer(nn.Module, BaseTunerLayer):
    """A layer whose adapters each add an update to one parameter of the base layer.

    The first of `adapter_layer_names` holds the adapters by name.
    """

    updated: str  # the parameter's name in the base layer

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter."""
        raise NotImplementedError

    def update(self, adapter_name: str) -> Tensor:
        """Return the update of an adapter, in the shape of the parameter."""
        raise NotImplementedError

    def added(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return what the update of an adapter adds to the output."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the updates of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        if not (self.disable_adapters or self.merged):
            for name in filter(self._has, self.active_adapters):
                result = result + self.added(x, name).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the named, or active, adapters to the parameter.

        Raises:
            ValueError: with `safe_merge`, if a merged value would not be finite.
        """
        for name in filter(self._has, check_adapters_to_merge(self, adapter_names)):
            parameter = self._parameter()
            merged = parameter.data + self.update(name).detach().to(parameter.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"the {self.updated} merged with adapter {name!r} is not finite")
            parameter.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract the merged updates."""
        while self.merged_adapters:
            parameter = self._parameter()
            parameter.data -= self.update(self.merged_adapters.pop()).detach().to(parameter.dtype)

    def _has(self, adapter_name: str) -> bool:
        return adapter_name in getattr(self, self.adapter_layer_names[0])

    def _parameter(self) -> Tensor:
        return cast("Tensor", getattr(self.base_layer, self.updated))


class PluginTuner(BaseTuner):
    """A tuner of PluginLayers, which can be unloaded from a model whose head has several layers."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 declared as in PEFT; there are no default targets

    def _new_layer(self, target: nn.Module) -> PluginLayer:
        raise NotImplementedError

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
        if isinstance(target, PluginLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self._new_layer(target)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter is not active yet
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version reads the weight of the child, which a head of several layers (RoBERTa's) does not have.
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def register(name: str, config: type[PeftConfig], tuner: type[PluginTuner]) -> None:
    """Register a method with PEFT under a name in capitals, for `get_peft_model` and for loading adapters."""
    if name not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
        extend_enum(PeftType, name, name)
    register_peft_method(name=name.lower(), config_cls=config, model_cls=tuner, prefix=tuner.prefix)
