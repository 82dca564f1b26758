"""The arithmetic of an adapted layer: a plain form for every case, and a fused one for the usual case."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.separable import kron_sum, kron_sum_gradients

Side = tuple[Tensor, Tensor | None]  # a matrix, or its two Kronecker factors


def add_low_rank(
    result: Tensor,  # (..., m): W x + b
    x: Tensor,  # (..., n)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    scaling: float,
) -> Tensor:  # (..., m)
    """Return `result + scaling * B A x`; the m x n update itself is never formed.

    The small factors are cast to the dtype of x, never x to theirs: a copy of the activations would cost more than the
    adapter. Scaling and addition happen inside the second product.
    """
    hidden = F.linear(x, a.to(x.dtype)).reshape(-1, len(a))
    total = torch.addmm(result.reshape(-1, len(b)), hidden.to(result.dtype), b.to(result.dtype).T, alpha=scaling)
    return total.view(result.shape)


def adapted_linear(
    x: Tensor,  # (..., n)
    weight: Tensor,  # (m, n)
    bias: Tensor | None,  # (m,)
    a: Side,  # A (r, n) and None, or A1 (s, r_1, n_1) and A2 (s, r_2, n_2)
    b: Side,  # B (m, r) and None, or B1 (s, m_1, r_1) and B2 (s, m_2, r_2)
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:  # (..., m)
    """Return `W x + bias + scaling * B A drop(x)`, with `drop(x)` x itself or its inverted dropout.

    What costs time in an adapter is not its products but passes over activations, and in small models the number of
    operations. So all is one node: the update is added into the output of W inside a product, and so is its gradient
    with respect to x; for the backward pass nothing is kept but x, the small A and B, and a Boolean mask if there is
    dropout. A x is computed again: it takes a hundredth of the time of W x.

    Under autocast x is cast once, for W and A. Factors are cast to the dtype of x, never x to theirs. Gradients of
    gradients are exact too.
    """
    dtype = _autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    flat = x.reshape(-1, x.shape[-1])
    kept = None
    if dropout:
        kept = torch.empty_like(flat, dtype=torch.bool).bernoulli_(1 - dropout)
        scaling /= 1 - dropout
    total = _AdaptedLinear.apply(flat, weight, bias, kept, scaling, *a, *b)
    return total.view(*x.shape[:-1], weight.shape[0])


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return what autocast would compute a product of x in; None if it leaves x alone."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(x.device.type)


class _AdaptedLinear(torch.autograd.Function):
    """See `adapted_linear`. Skinny products get their long side contiguous, which is up to four times faster."""

    # Without setup_context, which would cost as much time as all else here where there are few tokens: apply() then
    # binds its arguments by name. So torch.func refuses this node.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (T, n)
        weight: Tensor,  # (m, n)
        bias: Tensor | None,  # (m,)
        kept: Tensor | None,  # (T, n), bool
        scaling: float,
        a1: Tensor,  # no *operands: torch.compile tells by the number of parameters whether there is a context
        a2: Tensor | None,
        b1: Tensor,
        b2: Tensor | None,
    ) -> Tensor:  # (T, m)
        a, b = _matrices(x, weight, (a1, a2), (b1, b2))
        ctx.scaling = scaling
        ctx.save_for_backward(x, weight, kept, a, b, a1, a2, b1, b2)
        return F.linear(x, weight, bias).addmm_(_masked(x, kept) @ a.T, b.T, alpha=scaling)

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,  # (T, m)
    ) -> tuple[Tensor | None, ...]:
        x, weight, kept, a, b, a1, a2, b1, b2 = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients reach the factors through A and B
            a, b = _matrices(x, weight, (a1, a2), (b1, b2))
        of_x, of_weight, of_bias, _, _, of_a1, of_a2, of_b1, of_b2 = ctx.needs_input_grad
        of_a, of_b = of_a1 or of_a2, of_b1 or of_b2
        down = F.linear(gradient, b.T.contiguous()) * ctx.scaling if of_x or of_a else None  # (T, r)
        up = _masked(x, kept) @ a.T * ctx.scaling if of_b else None  # (T, r)
        return (
            _input_gradient(gradient, weight, down, a, kept) if down is not None and of_x else None,
            gradient.T @ x if of_weight else None,
            gradient.sum(0) if of_bias else None,
            None,
            None,
            *_side_gradients(down.T.contiguous() @ _masked(x, kept) if down is not None and of_a else None, a1, a2),
            *_side_gradients((up.T @ gradient).T if up is not None else None, b1, b2),
        )


def _matrices(
    x: Tensor,  # (T, n)
    weight: Tensor,  # (m, n)
    a: Side,
    b: Side,
) -> tuple[Tensor, Tensor]:  # (r, n), (m, r)
    full_a, full_b = (one if two is None else kron_sum(one, two) for one, two in (a, b))
    return full_a[:, : x.shape[1]].to(x.dtype), full_b[: weight.shape[0]].to(x.dtype)


def _side_gradients(
    gradient: Tensor | None,  # of A or B; None if nobody wants it
    one: Tensor,
    two: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    if gradient is None:
        return None, None
    gradient = gradient.to(one.dtype)
    return (gradient, None) if two is None else kron_sum_gradients(gradient, one, two)


def _input_gradient(
    gradient: Tensor,  # (T, m)
    weight: Tensor,  # (m, n)
    down: Tensor,  # (T, r)
    a: Tensor,  # (r, n)
    kept: Tensor | None,  # (T, n), bool
) -> Tensor:  # (T, n)
    through_base = gradient @ weight
    return through_base.addmm_(down, a) if kept is None else through_base.add_(_masked(down @ a, kept))


def _masked(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else x * kept
