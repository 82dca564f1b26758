"""An adapted linear layer: its adapters by name, their output, and merging."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsr.algebra.separable import FactorShapes
from lsr.init.passes import widths
from lsr.tuner.adapter import LsrAdapter, add_low_rank, apply_with_update
from lsr.tuner.config import LsrConfig
from lsr.tuner.targets import ADAPTABLE, check_adaptable, is_quantized


class LsrLinear(nn.Module, BaseTunerLayer):
    """nn.Linear or Conv1D with LSR adapters: y = W x + b + scaling * B R A x for each active adapter."""

    adapter_layer_names = ("lsr_adapters",)
    _pretrained_weight: Tensor | None

    def __init__(self, base_layer: nn.Module, adapter_name: str, layer_name: str) -> None:
        super().__init__()
        base = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        check_adaptable(base, layer_name)
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.is_transposed = isinstance(base, Conv1D)
        self.in_features, self.out_features = widths(base)
        self.lsr_adapters = nn.ModuleDict({})
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # Not persistent: W while adapters are merged into the base weight, never part of a state dict.
        self.register_buffer("_pretrained_weight", None, persistent=False)
        # Meanwhile, the base layer's original parameter: embeddings may share it, and must not change with the head.
        self._lent: tuple[nn.Parameter, ...] = ()  # a tuple, so that nn.Module does not register it

    def adapter(self, name: str) -> LsrAdapter:
        """Return an adapter by name."""
        return cast("LsrAdapter", self.lsr_adapters[name])

    def update_layer(
        self,
        adapter_name: str,
        config: LsrConfig,
        form: FactorShapes,
        owner: LsrAdapter | None = None,
    ) -> None:
        """Add an adapter of zeros, with its own or an owner's factors; `lsr.tuner.initialize` sets its values."""
        scaling = config.scaling(self.layer_name, form)
        self.lsr_adapters[adapter_name] = LsrAdapter(form, config, scaling, self.weight, owner)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(  # (..., in_features) -> (..., out_features)
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the base layer's output plus the active adapters', or in row i that of `adapter_names[i]`.

        A single adapter on a plain layer is fused with it into one autograd node (`apply_with_update`). Several active
        adapters, dropout, further arguments, transposed inputs, and a hooked, patched or quantized base layer use
        `add_low_rank`.
        """
        if adapter_names is not None:
            return self._forward_rows(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.active_adapters
        active = [self.adapter(name) for name in names if name in self.lsr_adapters]
        is_dropping = self.training and any(isinstance(adapter.dropout, nn.Dropout) for adapter in active)
        # Where the tokens of x do not follow each other in memory, nn.Linear adds its bias after it has rounded.
        is_usual = (x.dim() < 3 or x.is_contiguous()) and _is_plain(self.base_layer)
        if len(active) == 1 and not (args or kwargs or is_dropping) and is_usual:
            (adapter,) = active
            weight = self.in_layout(self.weight)
            bias = cast("Tensor | None", self.base_layer.bias)
            return apply_with_update(x, weight, bias, *adapter.to_lora(), adapter.scaling)
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for adapter in active:
            result = add_low_rank(result, adapter.dropout(x), *adapter.to_lora(), adapter.scaling)
        return result

    def _forward_rows(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for name in dict.fromkeys(adapter_names):
            if name not in self.lsr_adapters:
                continue
            rows = [row for row, chosen in enumerate(adapter_names) if chosen == name]
            adapter = self.adapter(name)
            result[rows] = add_low_rank(result[rows], x[rows], *adapter.to_lora(), adapter.scaling)
        return result

    def base_matrix(self) -> Tensor:  # (out_features, in_features)
        """Return the pretrained weight in the layout of y = W x."""
        return self.in_layout(self.get_pretrained_weight())

    def in_layout(self, matrix: Tensor) -> Tensor:
        """Convert a matrix between the layout of y = W x and that of the base layer, in either direction."""
        if self.is_transposed:
            return matrix.T
        return matrix

    def get_pretrained_weight(self) -> Tensor:
        """Return the pretrained weight in the base layer's layout, also while adapters are merged into it."""
        if self._pretrained_weight is not None:
            return self._pretrained_weight
        base = self.get_base_layer()
        if is_quantized(base):
            return self._dequantize(base)
        return self.weight.detach()

    def _dequantize(self, base: nn.Module) -> Tensor:
        state = getattr(base.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            # bitsandbytes would silently unpack it as if it were in the usual order.
            raise ValueError(
                f"layer {self.layer_name!r}: its 4-bit weight was packed for this CPU when the model was first used; "
                "initialize or load adapters before that"
            )
        return cast("Tensor", dequantize_module_weight(base)).detach()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the update in the base weight's layout, in at least float32; called by PEFT."""
        return self.in_layout(self.adapter(adapter_name).update())

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the adapter, but keep its dtype: rounding the factors would change the initialization."""
        target = device if device is not None else self.weight.device
        is_loaded = adapter_name in self.lsr_adapters and not self.adapter(adapter_name).is_meta
        if is_loaded and target.type != "meta":
            self.lsr_adapters[adapter_name].to(target)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: PEFT may convert any LSR adapter."""
        return True

    def _weight_with(self, adapter_names: Sequence[str]) -> Tensor:
        """Return the pretrained weight plus updates, which are added in at least float32."""
        pretrained = self.get_pretrained_weight()
        precise = torch.promote_types(pretrained.dtype, torch.float32)
        total = pretrained.to(precise)
        for name in adapter_names:
            total = total + self.get_delta_weight(name).detach()
        return total.to(pretrained.dtype)

    def restore_base_weight(self) -> None:
        """Restore the pretrained base weight, whatever the state of the adapters."""
        if self._pretrained_weight is not None:
            (weight,) = self._lent
            weight.data = self._pretrained_weight
            self._pretrained_weight = None
            self.get_base_layer()._parameters["weight"] = weight
            self._lent = ()

    def check_merge(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        """Raise the error that `merge` would raise for these adapters, without changing anything.

        Raises:
            ValueError: as `merge`.
        """
        if is_quantized(self.get_base_layer()):
            raise ValueError(
                f"layer {self.layer_name!r}: its weight is quantized, and merging would round it again; load the "
                "adapter on the base model in full precision to merge it, or export it as LoRA"
            )
        added = self.active_adapters if adapter_names is None else adapter_names
        every = dict.fromkeys((*self.merged_adapters, *added))
        names = [name for name in every if name in self.lsr_adapters]
        if safe_merge and not torch.isfinite(self._weight_with(names)).all():
            raise ValueError(f"NaNs detected in the merged weights of {self.layer_name!r}: one of {names} seems broken")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the adapters into the base weight, in float32; the pretrained weight is kept for `unmerge`.

        Raises:
            ValueError: if the base weight is quantized; with `safe_merge`, if the merged weight is not finite. The base
                weight is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lsr_adapters]
        if not names:
            return
        self.check_merge(safe_merge, names)
        self.merged_adapters.extend(names)
        # Always from the stored W, so that no errors accumulate and W can be restored bit for bit. Modules that share W
        # with the base layer, such as embeddings with a tied head, keep W.
        weight = cast("nn.Parameter", self.weight)
        total = self._weight_with(self.merged_adapters)
        if self._lent:
            weight.data = total
        else:
            self._pretrained_weight = self.get_pretrained_weight()
            self._lent = (weight,)
            merged = nn.Parameter(total, requires_grad=weight.requires_grad)
            # Not by attribute: while PEFT loads with low_cpu_mem_usage, a parameter assigned that way loses its values.
            self.get_base_layer()._parameters["weight"] = merged

    def unmerge(self) -> None:
        """Restore the original weight bit for bit; subtracting the update would leave rounding errors."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters.clear()
        self.restore_base_weight()


def find_lsr_layers(model: nn.Module) -> dict[str, LsrLinear]:
    """Return the LSR layers of a model by their names in the base model, in the model's order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, LsrLinear)}


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer's forward is exactly that of its class: no subclass, hook or patch."""
    if type(layer) not in ADAPTABLE or "forward" in vars(layer):
        return False
    before = layer._forward_pre_hooks or layer._backward_pre_hooks
    after = layer._forward_hooks or layer._backward_hooks
    return not before and not after
