"""The adapter of a single layer: its own or shared factors, its core, its update and its output.

The output has a plain version for every case, and a fused one for the usual case.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.algebra.separable import FactorShapes, kron_sum
from lsr.algebra.spectrum import Pair
from lsr.errors import check_held
from lsr.tuner.config import LsrConfig
from lsr.tuner.packing import Tensors


class LsrAdapter(nn.Module):
    """The update ΔW = scaling * B R A.

    A and B are of `factor_A1` (s, r_1, n_1), ..., `factor_B1` (s, m_1, r_1), ...: parameters if they are trained, else
    buffers, the frozen bases around a core. With `train` set to `core` or `all`, R is the parameter `core`: (r, r), or
    (r,) for a diagonal. Otherwise R is the identity.

    All begin as zeros on the device of a base weight, in its dtype or float32, whichever is more precise. Factors
    depend on the shapes but not on the layer: `owner`, an adapter of another layer of equal shape, may share its own.
    """

    core: nn.Parameter
    owner: (
        "LsrAdapter | None"  # the adapter that holds the factors, of the first layer of a group, if it is another one
    )

    def __init__(
        self, form: FactorShapes, config: LsrConfig, scaling: float, like: Tensor, owner: "LsrAdapter | None" = None
    ) -> None:
        super().__init__()
        self.form = form
        self.scaling = scaling
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.has_core = config.has_core
        object.__setattr__(self, "owner", owner)  # past nn.Module, which would register it as a part of this one
        precise = torch.promote_types(like.dtype, torch.float32)
        zeros = partial(torch.zeros, device=like.device, dtype=precise)
        for name, shape in form.factor_shapes.items() if owner is None else ():
            if config.train == "core":
                self.register_buffer(name, zeros(shape))
            else:
                self.register_parameter(name, nn.Parameter(zeros(shape)))
        if self.has_core:
            axes = 2 if config.core == "full" else 1
            self.core = nn.Parameter(zeros([form.rank] * axes))

    @property
    def is_meta(self) -> bool:
        """Whether its tensors have no values yet, because they are about to be loaded."""
        return next(self.parameters()).is_meta

    def set_factors(self, values: Sequence[Tensor]) -> None:  # the factors of A, then those of B
        """Copy values into the factors."""
        for name, value in zip(self.form.factor_shapes, values, strict=True):
            getattr(self, name).data.copy_(value)

    def matrices(self) -> Pair:
        """Return the matrices A (r, in_features) and B (out_features, r), without padding."""
        factors = [getattr(self.owner or self, name) for name in self.form.factor_shapes]
        if self.owner is not None:  # the owner's layer may be on another device
            factors = [factor.to(self.core.device) for factor in factors]
        return _build_cropped(self.form, factors)

    def to_lora(self) -> Pair:  # (r, in_features), (out_features, r)
        """Return the equivalent LoRA factors R A and B, without the scaling."""
        a, b = self.matrices()
        if self.has_core:
            a = times_core(self.core, a)
        return a, b

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the update, in at least float32."""
        a, b = self.to_lora()
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))


def times_core(
    core: Tensor,  # (r, r), or (r,) for a diagonal
    a: Tensor,  # (r, n)
) -> Tensor:  # (r, n)
    """Return R A in the more precise dtype of both: a file may have more precise bases than cores."""
    precise = torch.promote_types(core.dtype, a.dtype)
    core = core.to(precise)
    a = a.to(precise)
    if core.dim() == 1:
        return core[:, None] * a
    return core @ a


def build_matrices(form: FactorShapes, tensors: Tensors) -> Pair:
    """Return the matrices A (r, in_features) and B (out_features, r) of stored factors, in at least float32.

    Raises:
        ValueError: if one is missing or unexpected, or has the wrong shape; names it.
    """
    shapes = form.factor_shapes
    check_held(tensors, shapes, "these bases")
    factors = []
    for name, shape in shapes.items():
        factor = tensors[name]
        if factor.shape != shape:
            raise ValueError(f"{name} is {tuple(factor.shape)}, needed: {shape}")
        precise = torch.promote_types(factor.dtype, torch.float32)
        factors.append(factor.to(precise))
    return _build_cropped(form, factors)


def _build_cropped(form: FactorShapes, factors: Sequence[Tensor]) -> Pair:  # the factors of A, then those of B
    count = len(form.rank_shape)
    a = kron_sum(*factors[:count])
    b = kron_sum(*factors[count:])
    return a[:, : form.in_features], b[: form.out_features]


def add_low_rank(
    result: Tensor,  # (..., m): W x + b
    x: Tensor,  # (..., n)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    scaling: float,
) -> Tensor:  # (..., m)
    """Return `result + scaling * B A x`; the m x n update itself is never formed.

    The small factors are cast to the dtype of x, never the reverse: a copy of the activations would cost more than the
    adapter itself. Scaling and addition are fused into the second product.
    """
    hidden = F.linear(x, a.to(x.dtype)).reshape(-1, len(a))
    hidden = hidden.to(result.dtype)
    left = b.to(result.dtype)
    total = torch.addmm(result.reshape(-1, len(b)), hidden, left.T, alpha=scaling)
    return total.view(result.shape)


def apply_with_update(
    x: Tensor,  # (..., n)
    weight: Tensor,  # (m, n)
    bias: Tensor | None,  # (m,)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    scaling: float,
) -> Tensor:  # (..., m)
    """Return `W x + bias + scaling * B A x`.

    An adapter's time is spent on passes over activations, not on its products, and in small models on the number of
    operations. So everything is one autograd node, which saves for the backward pass only x, the small A, B and A x.
    For many tokens in full precision a temporary `W + scaling * B A` replaces W, which saves passes over outputs and
    gradients (`_is_cheaper_in_weight`). Otherwise B A x is added to the output of W inside a product, and likewise the
    gradient with respect to x. With all layers of a MiniLM adapted, a training step on one processor core takes 5 to 8
    % less time in float32 than by `add_low_rank`, and up to 4 % less in bfloat16.

    Under autocast x is cast once, for both W and A. A and B are cast to the dtype of x, never the reverse. Double
    backward is exact.
    """
    # There is no autocast on the device meta, where models are measured: asking for it raises an error.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rows = x.reshape(-1, x.shape[-1])
    total = _AdaptedLinear.apply(rows, weight, bias, scaling, a.to(x.dtype), b.to(x.dtype))
    return total.view(*x.shape[:-1], len(weight))


def _is_cheaper_in_weight(x: Tensor, weight: Tensor) -> bool:  # (T, n), (m, n)
    """Return whether to add the update to a copy of W, whose cost depends on the weight and not on the tokens.

    True if the copy is at most a third of the size of input and output, and nothing is rounded to fewer bits than the
    factors have: in bfloat16 or TF32 a small update would be lost in W. False while compiling, because a graph should
    hold for any number of tokens.
    """
    m, n = weight.shape
    if torch.compiler.is_compiling() or len(x) * (m + n) < 3 * m * n:
        return False
    if x.dtype is torch.float64:
        return True
    return x.dtype is torch.float32 and _is_full_precision(x.device.type)


def _is_full_precision(device_type: str) -> bool:
    """Return whether float32 matrix products avoid rounding to TF32 or bfloat16."""
    backend = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device_type)
    if backend is None:
        return False
    # torch 2.9 introduced a setting per backend; once one is set, reading the global one raises an error.
    setting = getattr(backend, "matmul", None)
    precision = getattr(setting, "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() == "highest"
    return precision in ("none", "ieee")


class _AdaptedLinear(torch.autograd.Function):
    """See `apply_with_update`. Skinny products are computed as (r, n) (n, T), which is two to three times faster."""

    # No setup_context: with it apply() binds its arguments by name, which for few tokens takes as long as everything
    # else here. The price is that torch.func rejects this node.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (T, n)
        weight: Tensor,  # (m, n)
        bias: Tensor | None,  # (m,)
        scaling: float,
        a: Tensor,  # (r, n)
        b: Tensor,  # (m, r)
    ) -> Tensor:  # (T, m)
        if _is_cheaper_in_weight(x, weight):
            hidden = None
            output = F.linear(x, _add_update(weight, a, b, scaling), bias)
        else:
            hidden = a @ x.T  # (r, T)
            output = F.linear(x, weight, bias).addmm_(hidden.T, b.T, alpha=scaling)
        ctx.scaling = scaling
        ctx.save_for_backward(x, weight, hidden, a, b)
        return output

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,  # (T, m)
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, a, b = ctx.saved_tensors
        of_x, of_weight, of_bias, _, of_a, of_b = ctx.needs_input_grad
        down = b.T @ gradient.T * ctx.scaling  # (r, T)
        x_gradient = b_gradient = None
        if of_x and _is_cheaper_in_weight(x, weight):
            x_gradient = gradient @ _add_update(weight, a, b, ctx.scaling)
        elif of_x:
            x_gradient = (gradient @ weight).addmm_(down.T, a)
        if of_b:
            if hidden is None or torch.is_grad_enabled():  # double backward reaches A through it
                hidden = a @ x.T
            b_gradient = (hidden @ gradient).T * ctx.scaling
        return (
            x_gradient,
            gradient.T @ x if of_weight else None,
            gradient.sum(0) if of_bias else None,
            None,
            down @ x if of_a else None,
            b_gradient,
        )


def _add_update(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:  # (m, n), (r, n), (m, r) -> (m, n)
    return weight.clone().addmm_(b, a, alpha=scaling)  # torch.addmm takes twice as long on CPUs
