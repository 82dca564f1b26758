"""A linear layer with LSR adapters on it, in PEFT's form: LsrLayer holds the state, LsrLinear computes."""

import hashlib
import warnings
from math import prod
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lsr.config import LsrConfig
from lsr.factorize import random_factors, row_space_factors
from lsr.functional import add_low_rank
from lsr.separable import kron_sum
from lsr.shapes import count_parameters, max_separation_rank, split_width

ADAPTABLE = (nn.Linear, Conv1D)


class LsrLayer(BaseTunerLayer):
    """The factors of a layer's adapters, by adapter name: `lsr_A1`, `lsr_A2`, ..., `lsr_B1`, `lsr_B2`, ..."""

    adapter_layer_names: tuple[str, ...] = ()  # grows with the number of Kronecker factors, see _make_room
    other_param_names = ("lsr_dropout", "rank_shape", "separation_rank", "in_shape", "out_shape", "scaling")

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        base = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        if not isinstance(base, ADAPTABLE):
            kinds = " or ".join(kind.__name__ for kind in ADAPTABLE)
            raise TypeError(f"layer {layer_name!r} cannot be adapted: it must be {kinds}, got {type(base).__name__}")
        if isinstance(base, NonDynamicallyQuantizableLinear):  # an adapter would have no effect, silently
            raise TypeError(
                f"layer {layer_name!r} cannot be adapted: nn.MultiheadAttention reads its weight and never "
                "calls it; leave it out with exclude_modules"
            )
        if not base.weight.is_floating_point():
            raise TypeError(
                f"layer {layer_name!r} cannot be adapted: its weight is quantised, got the dtype {base.weight.dtype}"
            )
        self.base_layer = base_layer
        self.layer_name = layer_name
        # Conv1D of GPT-2 keeps its weight transposed: (in_features, out_features).
        self.is_transposed = isinstance(base, Conv1D)
        rows, columns = base.weight.shape
        self.in_features, self.out_features = (rows, columns) if self.is_transposed else (columns, rows)
        self.lsr_dropout = nn.ModuleDict({})
        self.rank_shape: dict[str, tuple[int, ...]] = {}
        self.separation_rank: dict[str, int] = {}
        self.in_shape: dict[str, tuple[int, ...]] = {}
        self.out_shape: dict[str, tuple[int, ...]] = {}
        self.scaling: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(
        self,
        adapter_name: str,
        config: LsrConfig,
        rank_shape: tuple[int, ...],
        separation_rank: int,
        alpha: float,
    ) -> None:
        """Add an adapter, with factors as `config.init_weights` says; a named initialisation comes later.

        Raises:
            ValueError: if the shapes do not fit the layer; names the layer and what would fit.
        """
        in_shape = self._shape("in_shape", config.in_shape, self.in_features, rank_shape)
        out_shape = self._shape("out_shape", config.out_shape, self.out_features, rank_shape)
        limit = min(max_separation_rank(rank_shape, in_shape), max_separation_rank(rank_shape, out_shape))
        if separation_rank > limit:
            shapes = f"{self.out_features} x {self.in_features} as {list(out_shape)} x {list(in_shape)}"
            raise ValueError(
                f"layer {self.layer_name!r}: separation_rank must be in [1, {limit}] for {shapes} and "
                f"rank_shape {list(rank_shape)}, got {separation_rank}"
            )
        self.rank_shape[adapter_name] = rank_shape
        self.separation_rank[adapter_name] = separation_rank
        self.in_shape[adapter_name] = in_shape
        self.out_shape[adapter_name] = out_shape
        self.scaling[adapter_name] = config.scaling(rank_shape, alpha)
        self.lsr_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self._make_room(len(rank_shape))
        self.reset_factors(adapter_name, zero=config.init_weights is not False, seed=config.seed)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _shape(
        self, field: str, given: tuple[int, ...] | None, width: int, rank_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        if given is None:
            return split_width(width, rank_shape)
        if len(given) != len(rank_shape) or prod(given) < width:
            raise ValueError(
                f"layer {self.layer_name!r}: {field} must hold {len(rank_shape)} sizes with a product >= {width}, "
                f"such as {list(split_width(width, rank_shape))}, got {list(given)}"
            )
        return given

    def _make_room(self, count: int) -> None:
        """Have a ParameterDict for each factor; adapters of one layer may differ in their number of factors."""
        names = [f"lsr_{side}{i}" for side in "AB" for i in range(1, count + 1)]
        for name in names:
            if not hasattr(self, name):
                setattr(self, name, nn.ParameterDict({}))
        self.adapter_layer_names = tuple(dict.fromkeys([*self.adapter_layer_names, *names]))

    def factors(self, adapter_name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and those of B, (s, m_i, r_i) each."""
        count = len(self.rank_shape[adapter_name])
        a, b = ([getattr(self, f"lsr_{side}{i}")[adapter_name] for i in range(1, count + 1)] for side in "AB")
        return a, b

    def reset_factors(self, adapter_name: str, *, zero: bool, seed: int | None) -> None:
        """Draw all factors anew; `zero` makes B1 zero, so that the model is unchanged."""
        a, b = random_factors(
            self.rank_shape[adapter_name],
            self.in_shape[adapter_name],
            self.out_shape[adapter_name],
            self.in_features,
            self.separation_rank[adapter_name],
            zero,
            self._generator(seed),
        )
        self._set_factors(adapter_name, "A", a)
        self._set_factors(adapter_name, "B", b)

    def start_from_row_space(self, adapter_name: str, seed: int | None) -> None:
        """Replace the factors of A by the nearest Kronecker sum to the leading right singular vectors of W.

        Raises:
            ValueError: if the base weight has no such vectors; names the layer.
        """
        if self.factors(adapter_name)[0][0].is_meta:
            return  # no values yet: they are about to be loaded
        try:
            a = row_space_factors(
                self.base_matrix(),
                self.rank_shape[adapter_name],
                self.in_shape[adapter_name],
                self.separation_rank[adapter_name],
                seed or 0,
            )
        except ValueError as error:
            raise ValueError(f"layer {self.layer_name!r}: {error}") from None
        self._set_factors(adapter_name, "A", a)

    def _generator(self, seed: int | None) -> torch.Generator | None:
        """Mix the seed with the layer's name: a layer starts the same whatever other layers are adapted."""
        if seed is None:
            return None
        digest = hashlib.sha256(f"{seed}:{self.layer_name}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))

    def _set_factors(self, adapter_name: str, side: str, values: list[Tensor]) -> None:
        for position, value in enumerate(values, start=1):
            existing = getattr(self, f"lsr_{side}{position}")
            if adapter_name in existing:
                with torch.no_grad():
                    existing[adapter_name].copy_(value)
            else:
                existing[adapter_name] = nn.Parameter(value.float())

    def base_parameter(self) -> nn.Parameter:
        """Return the base layer's weight, in the base layer's layout."""
        return cast("nn.Parameter", self.get_base_layer().weight)

    def base_matrix(self) -> Tensor:  # (out_features, in_features)
        """Return the frozen weight as y = W x has it."""
        weight = self.base_parameter().detach()
        return weight.T if self.is_transposed else weight

    def collapse(self, adapter_name: str) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return A and B as matrices: the LoRA that this adapter is."""
        a, b = self.factors(adapter_name)
        return kron_sum(*a)[:, : self.in_features], kron_sum(*b)[: self.out_features]

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return scaling * B A in the layout of the base weight, in float32 at least."""
        a, b = self.collapse(adapter_name)
        precise = torch.promote_types(a.dtype, torch.float32)
        delta = self.scaling[adapter_name] * (b.to(precise) @ a.to(precise))
        return delta.T if self.is_transposed else delta

    def count_parameters(self, adapter_name: str) -> int:
        """Return how many numbers the adapter stores in this layer."""
        return count_parameters(
            self.separation_rank[adapter_name],
            self.rank_shape[adapter_name],
            self.in_shape[adapter_name],
            self.out_shape[adapter_name],
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: PEFT may convert any LSR adapter."""
        return True


class LsrLinear(nn.Module, LsrLayer):
    """nn.Linear or Conv1D with LSR adapters: y = W x + b + scaling * B A x for each active adapter."""

    _unmerged_weight: Tensor | None

    def __init__(self, base_layer: nn.Module, adapter_name: str, layer_name: str) -> None:
        nn.Module.__init__(self)
        LsrLayer.__init__(self, base_layer, layer_name)
        self._active_adapter = adapter_name
        # Not persistent: it is a memory of the base weight while merged, never part of a state dict.
        self.register_buffer("_unmerged_weight", None, persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (..., in_features) -> (..., out_features)
        """Return the base layer's output plus that of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        if self.disable_adapters or self.merged:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.scaling:
                a, b = self.collapse(adapter_name)
                result = add_low_rank(result, self.lsr_dropout[adapter_name](x), a, b, self.scaling[adapter_name])
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight, in float32; the original weight is kept for `unmerge`.

        Raises:
            ValueError: with `safe_merge`, if the merged weight is not finite; the base weight is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.scaling]
        if not names:
            return
        weight = self.base_parameter()
        merged = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        for name in names:
            merged = merged + self.get_delta_weight(name).detach()
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights of {self.layer_name!r}: one of {names} seems broken")
        if self._unmerged_weight is None:
            self._unmerged_weight = weight.data
        weight.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the original weight back, bit for bit; subtracting the update would leave rounding errors."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.base_parameter().data = cast("Tensor", self._unmerged_weight)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return f"lsr.{super().__repr__()}"
