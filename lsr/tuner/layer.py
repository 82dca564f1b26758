"""A linear layer with LSR adapters on it, in PEFT's form: LsrLayer holds the state, LsrLinear computes."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form, split_width
from lsr.init.factorize import Start, begin, random_factors
from lsr.tuner.config import LsrConfig
from lsr.tuner.fixed import FixedPart
from lsr.tuner.functional import Side, adapted_linear, add_low_rank

ADAPTABLE = (nn.Linear, Conv1D)


def is_plain(layer: nn.Module) -> bool:
    """Return whether calling a layer does nothing but the product of its class: no subclass, hook or patch."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) in ADAPTABLE and not hooks and "forward" not in layer.__dict__


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer is one of bitsandbytes, with 8 or 4 bits a number."""
    return type(layer.weight).__name__ in ("Int8Params", "Params4bit")


@dataclass(frozen=True)
class Sizes:
    """How many numbers an adapter has: `trained` ones, `stored` ones (slots too), and `effective` ones (frames too)."""

    trained: int
    stored: int
    effective: int


class LsrLayer(BaseTunerLayer):
    """The factors of a layer's adapters, by adapter name: `lsr_A1`, `lsr_A2`, ..., `lsr_B1`, `lsr_B2`, ..."""

    adapter_layer_names: tuple[str, ...] = ()  # grows with the number of Kronecker factors, see _make_room
    other_param_names = ("lsr_dropout", "lsr_fixed", "form", "scaling", "residual")

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
        if not base.weight.is_floating_point() and not is_quantised(base):
            raise TypeError(
                f"layer {layer_name!r} cannot be adapted: its weight is quantised, got the dtype {base.weight.dtype}; "
                "of quantised layers, those of bitsandbytes can"
            )
        self.base_layer = base_layer
        self.layer_name = layer_name
        # Conv1D of GPT-2 keeps its weight transposed: (in_features, out_features).
        self.is_transposed = isinstance(base, Conv1D)
        rows, columns = base.weight.shape
        if is_quantised(base):  # a packed weight has another shape
            rows, columns = cast("int", base.out_features), cast("int", base.in_features)
        self.in_features, self.out_features = (rows, columns) if self.is_transposed else (columns, rows)
        self.lsr_dropout = nn.ModuleDict({})
        self.lsr_fixed = nn.ModuleDict({})
        self.form: dict[str, Form] = {}
        self.scaling: dict[str, float] = {}
        self.residual: dict[str, str] = {}
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
            ValueError: if the shapes do not fit the layer, or it is quantised and would be changed; names the layer.
        """
        if config.residual == "fold" and is_quantised(self.get_base_layer()):
            raise ValueError(
                f"layer {self.layer_name!r}: its weight is quantised, and residual='fold' would change it; use 'frozen'"
            )
        form = self.make_form(config, rank_shape, separation_rank)
        self.form[adapter_name] = form
        self.scaling[adapter_name] = config.scaling(rank_shape, alpha)
        self.residual[adapter_name] = config.residual
        self.lsr_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.lsr_fixed[adapter_name] = FixedPart()
        self._make_room(len(rank_shape))
        zero = config.init_weights is not False
        self.set_start(adapter_name, Start(*random_factors(form, zero, self._generator(config.seed))), config)
        if config.align:  # room for what a file holds
            self._set_slots(adapter_name, "in_slots", torch.arange(self.in_features))
            if config.fits_outputs:
                self._set_slots(adapter_name, "out_slots", torch.arange(self.out_features))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def make_form(self, config: LsrConfig, rank_shape: tuple[int, ...], separation_rank: int) -> Form:
        """Return the shapes of an adapter of this layer.

        Raises:
            ValueError: if they do not fit the layer; names the layer and what would fit.
        """
        form = Form(
            rank_shape,
            self._shape("in_shape", config.in_shape, self.in_features, rank_shape, config.aspect),
            self._shape("out_shape", config.out_shape, self.out_features, rank_shape, config.aspect),
            separation_rank,
            self.in_features,
            self.out_features,
        )
        if separation_rank > form.max_separation_rank:
            shapes = f"{self.out_features} x {self.in_features} as {list(form.out_shape)} x {list(form.in_shape)}"
            raise ValueError(
                f"layer {self.layer_name!r}: separation_rank must be in [1, {form.max_separation_rank}] for {shapes} "
                f"and rank_shape {list(rank_shape)}, got {separation_rank}"
            )
        return form

    def _shape(
        self, field: str, given: tuple[int, ...] | None, width: int, rank_shape: tuple[int, ...], aspect: float
    ) -> tuple[int, ...]:
        if given is None:
            return split_width(width, rank_shape, aspect)
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
        """Return the factors of A, (s, r_i, n_i) each, and those of B, (s, m_i, r_i) each, frozen ones too."""
        positions = range(1, len(self.form[adapter_name].rank_shape) + 1)
        a, b = ([self._factor(adapter_name, side, position) for position in positions] for side in "AB")
        return a, b

    def _factor(self, adapter_name: str, side: str, position: int) -> Tensor:
        trained = getattr(self, f"lsr_{side}{position}")._parameters.get(adapter_name)
        return cast("Tensor", self.fixed(adapter_name).frame(side, position) if trained is None else trained)

    def fixed(self, adapter_name: str) -> FixedPart:
        """Return what of the adapter does not train."""
        return cast("FixedPart", self.lsr_fixed[adapter_name])

    def start(self, adapter_name: str, config: LsrConfig, statistic: Tensor | None = None) -> Start | None:
        """Give the factors the start that the configuration names; None if they have no values yet (meta tensors).

        Raises:
            ValueError: if the base weight or the statistic does not allow it; names the layer.
        """
        if self.factors(adapter_name)[0][0].is_meta:
            return None  # about to be loaded
        start = self._begin(adapter_name, config, statistic)
        self.set_start(adapter_name, start, config)
        self._subtract(adapter_name, start)
        return start

    def start_again(self, adapter_name: str, config: LsrConfig) -> Start:
        """Make again what a file does not hold, frames and what to subtract; the trained factors stay as they are.

        Raises:
            ValueError: if the base weight does not allow it; names the layer.
        """
        start = self._begin(adapter_name, config, None)
        if config.frames == "frozen":
            self._freeze(adapter_name, start, config)
        self._order(adapter_name, start)  # the file's is read later, and what is subtracted now must be in order
        self._subtract(adapter_name, start)
        return start

    def check_values(self) -> None:
        """Check that the base weight can be decomposed.

        Raises:
            ValueError: if it is a meta tensor; names the layer.
        """
        if self.base_parameter().is_meta:
            raise ValueError(f"layer {self.layer_name!r}: cannot start from a base weight without values")

    def _begin(self, adapter_name: str, config: LsrConfig, statistic: Tensor | None) -> Start:
        try:
            return begin(
                config.start,
                self.base_matrix(),
                self.form[adapter_name],
                generator=self._generator(config.seed),
                seed=config.seed or 0,
                zero=config.init_weights is not False,
                scaling=self.scaling[adapter_name],
                residual=config.residual,
                align=config.align,
                statistic=statistic,
            )
        except ValueError as error:
            raise ValueError(f"layer {self.layer_name!r}: {error}") from None

    def set_start(self, adapter_name: str, start: Start, config: LsrConfig) -> None:
        """Set the factors; frozen ones become buffers, which are stored if they cannot be made again."""
        frozen = config.frames == "frozen"
        for side, factors in (("A", start.a), ("B", start.b)):
            for position, factor in enumerate(factors[:1] if frozen else factors, start=1):
                self._set_factor(adapter_name, f"{side}{position}", factor)
        if frozen:
            self._freeze(adapter_name, start, config)
        self._order(adapter_name, start)

    def _order(self, adapter_name: str, start: Start) -> None:
        for name, slots in (("in_slots", start.in_slots), ("out_slots", start.out_slots)):
            if slots is not None:
                self._set_slots(adapter_name, name, slots)

    def _freeze(self, adapter_name: str, start: Start, config: LsrConfig) -> None:
        for side, factors in (("A", start.a), ("B", start.b)):
            self.fixed(adapter_name).set_frame(side, self._like_factors(factors[1:]), stored=not config.can_start_again)

    def _set_slots(self, adapter_name: str, name: str, slots: Tensor) -> None:
        form = self.form[adapter_name]
        width = form.in_width if name == "in_slots" else form.out_width
        self.fixed(adapter_name).set_slots(name, slots.to(self.base_parameter().device), width)

    def _subtract(self, adapter_name: str, start: Start) -> None:
        if self.residual[adapter_name] != "zero":
            for side, factors in (("A", start.a), ("B", start.b)):
                self.fixed(adapter_name).set_start(side, self._like_factors(factors))
            self.settle()

    def settle(self) -> None:
        """Bring the base weight in line with the adapters' state, where it depends on it."""

    def release(self) -> None:
        """Make the base weight the pretrained one, whatever the adapters' state asks for."""

    def check_mergeable(self) -> None:
        """Check that the base weight can take a sum.

        Raises:
            ValueError: if it is quantised: the sum would be rounded to a few bits; names the layer.
        """
        if is_quantised(self.get_base_layer()):
            raise ValueError(
                f"layer {self.layer_name!r}: its weight is quantised, and merging would round it again; load the "
                "adapter on the base model in full precision to merge it, or export it as LoRA"
            )

    def check_merge(self, adapter_names: list[str] | None) -> None:
        """Raise what a safe merge of these adapters would raise, and change nothing."""
        before = list(self.merged_adapters)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the merge itself will warn
                self.merge(safe_merge=True, adapter_names=adapter_names)
        finally:
            self.merged_adapters[:] = before
            self.settle()

    def _generator(self, seed: int | None) -> torch.Generator | None:
        """Mix the seed with the layer's name: a layer starts the same whatever other layers are adapted."""
        if seed is None:
            return None
        digest = hashlib.sha256(f"{seed}:{self.layer_name}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))

    def _set_factor(self, adapter_name: str, name: str, value: Tensor) -> None:
        existing = getattr(self, f"lsr_{name}")
        if adapter_name in existing:
            with torch.no_grad():
                existing[adapter_name].copy_(value)
        else:
            existing[adapter_name] = nn.Parameter(self._like_factors([value])[0])

    def _like_factors(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors where the base weight is, in float32 at least."""
        weight = self.base_parameter()
        return [value.to(weight.device, torch.promote_types(weight.dtype, torch.float32)) for value in values]

    def base_parameter(self) -> nn.Parameter:
        """Return the base layer's weight, in the base layer's layout."""
        return cast("nn.Parameter", self.get_base_layer().weight)

    def base_matrix(self) -> Tensor:  # (out_features, in_features)
        """Return the pretrained weight as y = W x has it."""
        weight = self.pretrained_weight()
        return weight.T if self.is_transposed else weight

    def pretrained_weight(self) -> Tensor:
        """Return the pretrained weight in the base layer's layout, also while adapters are merged or folded into it."""
        return self._dequantised() if is_quantised(self.get_base_layer()) else self.base_parameter().detach()

    def _dequantised(self) -> Tensor:
        if getattr(getattr(self.base_parameter(), "quant_state", None), "packing_format_for_cpu", False):
            # bitsandbytes unpacks it as if it were in the usual order, without a word.
            raise ValueError(
                f"layer {self.layer_name!r}: its 4-bit weight was packed for this CPU when the model was first used; "
                "start or load adapters before that"
            )
        return cast("Tensor", dequantize_module_weight(self.get_base_layer())).detach()

    def collapse(self, adapter_name: str) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return A and B as matrices: what the layer adds to its base layer, without the scaling.

        With the residual `frozen` they have 2r rows and columns, [A; A - A0] and [B - B0, B0]: their product is
        B A - B0 A0, and exactly zero at the start.
        """
        a, b = self._matrices(adapter_name, *self.factors(adapter_name))
        if self.residual[adapter_name] == "frozen" and self.fixed(adapter_name).has_start:
            a0, b0 = self._start_matrices(adapter_name)
            return torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1)
        return a, b

    def operands(self, adapter_name: str) -> tuple[Side, Side]:
        """Return A1 and A2, B1 and B2 where these are all of `collapse`, and otherwise its A and B, with None each."""
        fixed = self.fixed(adapter_name)
        plain = fixed.in_slots is None and fixed.out_slots is None and self.residual[adapter_name] != "frozen"
        if plain and len(self.form[adapter_name].rank_shape) == 2:
            (a1, a2), (b1, b2) = self.factors(adapter_name)
            return (a1, a2), (b1, b2)
        a, b = self.collapse(adapter_name)
        return (a, None), (b, None)

    def as_lora(self, adapter_name: str) -> tuple[Tensor, Tensor]:  # (r or 2r, in_features), (out_features, r or 2r)
        """Return A and B such that scaling * B A is the whole update of the pretrained weight.

        With the residual `fold` they are [A; A0] and [B, -B0]; otherwise what `collapse` returns.
        """
        a, b = self.collapse(adapter_name)
        if self.residual[adapter_name] == "fold" and self.fixed(adapter_name).has_start:
            a0, b0 = self._start_matrices(adapter_name)
            return torch.cat([a, a0.to(a.dtype)]), torch.cat([b, -b0.to(b.dtype)], dim=1)
        return a, b

    def _start_matrices(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        count = len(self.form[adapter_name].rank_shape)
        fixed = self.fixed(adapter_name)
        return self._matrices(adapter_name, fixed.start("A", count), fixed.start("B", count))

    def _matrices(self, adapter_name: str, a: list[Tensor], b: list[Tensor]) -> tuple[Tensor, Tensor]:
        fixed = self.fixed(adapter_name)
        full_a, full_b = kron_sum(*a), kron_sum(*b)
        return (
            full_a[:, : self.in_features] if fixed.in_slots is None else full_a[:, fixed.in_slots.int()],
            full_b[: self.out_features] if fixed.out_slots is None else full_b[fixed.out_slots.int()],
        )

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return scaling * B A less what the adapter started at, in the base weight's layout, in float32 at least."""
        return self._update(adapter_name, *self.as_lora(adapter_name))

    def _update(self, adapter_name: str, a: Tensor, b: Tensor) -> Tensor:
        precise = torch.promote_types(a.dtype, torch.float32)
        delta = self.scaling[adapter_name] * (b.to(precise) @ a.to(precise))
        return delta.T if self.is_transposed else delta

    def sizes(self, adapter_name: str) -> Sizes:
        """Return how many numbers the adapter trains, stores and works with in this layer."""
        form, fixed = self.form[adapter_name], self.fixed(adapter_name)
        trained = form.first_parameters if fixed.frame("A", 2) is not None else form.parameters
        return Sizes(trained, trained + fixed.stored_numbers(), form.parameters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the adapter, but leave its dtype: rounding factors to that of the base layer would change the start."""
        target = device if device is not None else self.base_parameter().device
        if target.type == "meta":
            return
        for name in (*self.adapter_layer_names, "lsr_fixed"):
            holder = getattr(self, name)
            if adapter_name in holder and not any(p.is_meta for p in holder.parameters()):
                holder[adapter_name] = holder[adapter_name].to(target)

    def use_base_dtype(self, adapter_name: str) -> None:
        """Round the trained factors to the dtype of the base weight, unless that is quantised."""
        if is_quantised(self.get_base_layer()):
            return
        for name in self.adapter_layer_names:
            holder = getattr(self, name)
            if adapter_name in holder:
                holder[adapter_name].data = holder[adapter_name].to(self.base_parameter().dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: PEFT may convert any LSR adapter."""
        return True


class LsrLinear(nn.Module, LsrLayer):
    """nn.Linear or Conv1D with LSR adapters: y = W x + b + scaling * B A x for each active adapter."""

    _pretrained_weight: Tensor | None

    def __init__(self, base_layer: nn.Module, adapter_name: str, layer_name: str) -> None:
        nn.Module.__init__(self)
        LsrLayer.__init__(self, base_layer, layer_name)
        self._active_adapter = adapter_name
        # Not persistent: W while adapters are merged or folded into the base weight, never part of a state dict.
        self.register_buffer("_pretrained_weight", None, persistent=False)
        # The base layer's own parameter meanwhile: embeddings may share it, and these must not change with the head.
        self._lent: tuple[nn.Parameter, ...] = ()  # a tuple, which nn.Module does not register

    def forward(  # (..., in_features) -> (..., out_features)
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the base layer's output plus that of the active adapters, or in row i that of `adapter_names[i]`.

        One adapter on a plain layer is one node with it (`adapted_linear`). Several active adapters, rows of several,
        further arguments, and a base layer that is hooked, patched or quantised take the usual way (`add_low_rank`).
        """
        if adapter_names is not None:
            return self._forward_rows(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else [n for n in self.active_adapters if n in self.scaling]
        if len(names) == 1 and not args and not kwargs and is_plain(self.base_layer):
            return self._forward_fused(x, names[0])
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for name in names:
            a, b = self.collapse(name)
            result = add_low_rank(result, self.lsr_dropout[name](x), a, b, self.scaling[name])
        return result

    def _forward_rows(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        for name, scaling in self.scaling.items():
            rows = [row for row, chosen in enumerate(adapter_names) if chosen == name]
            if rows:  # the whole update, as the base weight is the pretrained one here
                result[rows] = add_low_rank(result[rows], x[rows], *self.as_lora(name), scaling)
        return result

    def _forward_fused(self, x: Tensor, adapter_name: str) -> Tensor:
        base, dropout = self.base_layer, self.lsr_dropout[adapter_name]
        weight = cast("Tensor", base.weight)
        return adapted_linear(
            x,
            weight.T if self.is_transposed else weight,
            cast("Tensor | None", base.bias),
            *self.operands(adapter_name),
            self.scaling[adapter_name],
            dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0,
        )

    def pretrained_weight(self) -> Tensor:
        """Return the pretrained weight in the base layer's layout, also while adapters are merged or folded into it."""
        return super().pretrained_weight() if self._pretrained_weight is None else self._pretrained_weight

    def settle(self) -> None:
        """Make the base weight W plus the merged updates, or W less the starts of active adapters that fold theirs.

        It is always computed from W, which is kept meanwhile: so nothing adds up, and W comes back bit for bit. What
        shares W with the base layer, as embeddings do with a tied head, keeps W.
        """
        if self.merged_adapters:
            updates = [self.get_delta_weight(name) for name in self.merged_adapters]
        else:
            updates = [-self._update(name, *self._start_matrices(name)) for name in self._folded()]
        if not updates:
            self.release()
            return
        weight, pretrained = self.base_parameter(), self.pretrained_weight()
        total = pretrained.to(torch.promote_types(weight.dtype, torch.float32))
        for update in updates:
            total = total + update.detach()
        if not self._lent:
            self._lent, self._pretrained_weight = (weight,), pretrained
            self._set_base_parameter(nn.Parameter(total.to(weight.dtype), requires_grad=weight.requires_grad))
        else:
            weight.data = total.to(weight.dtype)

    def _folded(self) -> list[str]:
        folding = [n for n in self.active_adapters if self.residual.get(n) == "fold" and self.fixed(n).has_start]
        return [] if self.disable_adapters else folding

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; PEFT calls it."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.settle()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; PEFT calls it."""
        super().enable_adapters(enabled)
        self.settle()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight, in float32; the pretrained weight is kept for `unmerge`.

        Raises:
            ValueError: if the base weight is quantised; with `safe_merge`, if the merged weight is not finite. The base
                weight is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.scaling]
        if not names:
            return
        self.check_mergeable()
        before = list(self.merged_adapters)
        self.merged_adapters.extend(names)
        self.settle()
        if safe_merge and not torch.isfinite(self.base_parameter()).all():
            self.merged_adapters[:] = before
            self.settle()
            raise ValueError(f"NaNs detected in the merged weights of {self.layer_name!r}: one of {names} seems broken")

    def unmerge(self) -> None:
        """Put the original weight back, bit for bit; subtracting the update would leave rounding errors."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters.clear()
        self.settle()

    def release(self) -> None:
        """Make the base weight the pretrained one, whatever the adapters' state asks for."""
        if self._pretrained_weight is not None:
            (weight,) = self._lent
            weight.data, self._pretrained_weight = self._pretrained_weight, None
            self._set_base_parameter(weight)
            self._lent = ()

    def _set_base_parameter(self, weight: nn.Parameter) -> None:
        # Not by attribute: while PEFT loads with low_cpu_mem_usage, whatever is assigned so loses its values.
        self.get_base_layer()._parameters["weight"] = weight

    def __repr__(self) -> str:
        return f"lsr.{super().__repr__()}"
