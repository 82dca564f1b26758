"""A linear layer with adapters, which it applies, merges into its weight and unmerges."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.base_weight import is_plain, is_quantized
from lsr.tuner.functional import adapted_linear, add_low_rank
from lsr.tuner.layer import LsrLayer


class LsrLinear(nn.Module, LsrLayer):
    """nn.Linear or Conv1D with LSR adapters: y = W x + b + scaling * B A x for each active adapter."""

    _pretrained_weight: Tensor | None

    def __init__(self, base_layer: nn.Module, adapter_name: str, layer_name: str) -> None:
        nn.Module.__init__(self)
        LsrLayer.__init__(self, base_layer, layer_name)
        self._active_adapter = adapter_name
        # Not persistent: W while adapters are merged into the base weight, never part of a state dict.
        self.register_buffer("_pretrained_weight", None, persistent=False)
        # Meanwhile, the base layer's original parameter: embeddings may share it, and must not change with the head.
        self._lent: tuple[nn.Parameter, ...] = ()  # a tuple, so that nn.Module does not register it

    def forward(  # (..., in_features) -> (..., out_features)
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the base layer's output plus that of the active adapters, or in row i that of `adapter_names[i]`.

        A single adapter on a plain layer is fused with it into one autograd node (`adapted_linear`). Several active
        adapters, further arguments, and a hooked, patched or quantized base layer use `add_low_rank`.
        """
        if adapter_names is not None:
            return self._forward_rows(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        is_plainly_base = self.disable_adapters or self.merged
        active = [] if is_plainly_base else [self.adapter(n) for n in self.active_adapters if n in self.lsr_adapters]
        if len(active) == 1 and not args and not kwargs and is_plain(self.base_layer):
            return self._forward_fused(x, active[0])
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for adapter in active:
            result = add_low_rank(result, adapter.dropout(x), *adapter.collapse(), adapter.scaling)
        return result

    def _forward_rows(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for name in filter(self.lsr_adapters.__contains__, dict.fromkeys(adapter_names)):
            rows = [row for row, chosen in enumerate(adapter_names) if chosen == name]
            adapter = self.adapter(name)
            result[rows] = add_low_rank(result[rows], x[rows], *adapter.collapse(), adapter.scaling)
        return result

    def _forward_fused(self, x: Tensor, adapter: LsrAdapter) -> Tensor:
        base, dropout = self.base_layer, adapter.dropout
        return adapted_linear(
            x,
            self.in_layout(cast("Tensor", base.weight)),
            cast("Tensor | None", base.bias),
            *adapter.operands(),
            adapter.scaling,
            dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0,
        )

    def pretrained_weight(self) -> Tensor:
        """Return the pretrained weight in the base layer's layout, also while adapters are merged into it."""
        return super().pretrained_weight() if self._pretrained_weight is None else self._pretrained_weight

    def _add_merged(self) -> None:
        """Set the base weight to W plus the merged updates.

        It is always computed from the stored W, so that no errors accumulate and W can be restored bit for bit. Modules
        that share W with the base layer, such as embeddings with a tied head, keep W.
        """
        weight, total = self.base_parameter(), self._weight_with(self.merged_adapters)
        if not self._lent:
            self._lent, self._pretrained_weight = (weight,), self.pretrained_weight()
            self._set_base_parameter(nn.Parameter(total, requires_grad=weight.requires_grad))
        else:
            weight.data = total

    def _weight_with(self, adapter_names: Sequence[str]) -> Tensor:
        """Return the pretrained weight plus updates, which are added in at least float32."""
        pretrained = self.pretrained_weight()
        total = pretrained.to(torch.promote_types(pretrained.dtype, torch.float32))
        for name in adapter_names:
            total = total + self.get_delta_weight(name).detach()
        return total.to(pretrained.dtype)

    def restore_base_weight(self) -> None:
        """Restore the pretrained base weight, whatever the state of the adapters."""
        if self._pretrained_weight is not None:
            (weight,) = self._lent
            weight.data, self._pretrained_weight = self._pretrained_weight, None
            self._set_base_parameter(weight)
            self._lent = ()

    def _set_base_parameter(self, weight: nn.Parameter) -> None:
        # Not by attribute: while PEFT loads with low_cpu_mem_usage, a parameter assigned that way loses its values.
        self.get_base_layer()._parameters["weight"] = weight

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
        names = self.active_adapters if adapter_names is None else adapter_names
        names = [name for name in dict.fromkeys((*self.merged_adapters, *names)) if name in self.lsr_adapters]
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
        self._add_merged()

    def unmerge(self) -> None:
        """Restore the original weight bit for bit; subtracting the update would leave rounding errors."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters.clear()
        self.restore_base_weight()


def adapted_layers(model: nn.Module) -> dict[str, LsrLinear]:
    """Return the LSR layers of a model by their names in the base model, in the model's order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, LsrLinear)}
