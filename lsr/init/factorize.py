"""Initial factors: from the seed, from pretrained weights, or from what examples say about them.

All in float64 and one layer at a time. Each start is fitted to a target and leaves the model unchanged: with B1 = 0,
or, where it fits B too, because what it starts at is subtracted again (`residual`).
"""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from lsr.algebra.align import align_product, align_row_space
from lsr.algebra.fit import fit_product, fit_row_space
from lsr.algebra.separable import balance, kron_sum, nearest_kron_sum, pad_columns, recondition
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import leading_part, leading_row_space, trailing_part


@dataclass(frozen=True)
class Start:
    """Factors to start from. Slots say which column (row) of A (B) belongs to which input (output); None: in order."""

    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each
    in_slots: Tensor | None = None  # (n,) of 0 ... n1 * ... * nD - 1
    out_slots: Tensor | None = None  # (m,)
    error: float | None = None  # relative distance of the fit to its target; None where nothing was fitted
    rows: Tensor | None = None  # (r, n), orthonormal: the row space aimed at, where it is not the weight's leading one


def random_factors(
    form: Form,
    zero: bool,
    generator: torch.Generator | None,
) -> tuple[list[Tensor], list[Tensor]]:  # A factors (s, r_i, n_i), B factors (s, m_i, r_i), float32
    """Draw factors such that A has the variance of LoRA's, 1 / (3 in_features), and B is zero.

    A1 ~ N(0, 1/(3 n)), A2 and B2 ~ N(0, 1/s), further ones ~ N(0, 1); B1 = 0. Only B1 may be zero: with B2 = 0 too all
    gradients would vanish. `zero=False` draws B1 as LoRA would draw B, so that the fresh adapter changes the model.

    Reference: LoRA's kaiming_uniform(sqrt 5), Hu et al. 2021 (arXiv 2106.09685); here s enters the variance only.
    """
    frame = _frame_scales(form)
    a_scales = [1 / sqrt(3 * form.in_features), *frame]
    b_scales = [0.0 if zero else 1 / sqrt(3 * form.rank), *frame]

    def draw(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(form.separation_rank, *shape, generator=generator)

    # The device is named: under `with torch.device("meta")` there would be nothing to draw.
    with torch.device("cpu"):
        a = [draw(scale, r, n) for scale, r, n in zip(a_scales, form.rank_shape, form.in_shape, strict=True)]
        b = [draw(scale, m, r) for scale, r, m in zip(b_scales, form.rank_shape, form.out_shape, strict=True)]
    return a, b


def _frame_scales(form: Form) -> list[float]:
    """Root mean squares of all factors but the first: products with them then keep the size of the first."""
    return [1 / sqrt(form.separation_rank)] + [1.0] * (len(form.rank_shape) - 2)


def begin(
    init: str,
    weight: Tensor,  # (m, n)
    form: Form,
    *,
    generator: torch.Generator | None = None,
    seed: int = 0,
    zero: bool = True,
    scaling: float = 1.0,
    residual: str = "zero",
    align: bool = False,
    statistic: Tensor | None = None,  # (m, n) for `gradient`, (n, n) for `activation`
) -> Start:
    """Return the start that a word of `lsr.tuner.config.INITIALISATIONS` names: the same bytes for the same arguments.

    Raises:
        ValueError: if the matrix to decompose is zero, not finite or too small, or the statistic is missing.
    """
    rest = Start(*random_factors(form, zero, generator))
    if init == "random":
        return rest
    if init == "row_space":
        return row_space_start(weight, form, rest, align, seed)
    if init in ("principal", "minor", "cp"):
        return product_start(init, weight, form, scaling, residual, align, seed)
    if statistic is None:
        raise ValueError(f"the start {init!r} needs examples: see lsr.start_from_examples")
    if init == "activation":
        return row_space_start(statistic, form, rest, align, seed)
    return gradient_start(statistic, form, rest, align, seed)


def row_space_start(
    matrix: Tensor,  # (m, n): the weight, its gradient, or the covariance of its inputs (n, n)
    form: Form,
    rest: Start,
    align: bool = False,
    seed: int = 0,
) -> Start:
    """Return `rest` with an A that spans the leading right singular vectors of a matrix as well as its form allows.

    min over A and C (r x r) of ||V_r^T - C A||_F: only the row space of A matters for the first steps, for B = 0
    learns any C. Then ||A||_F^2 = r / 3, LoRA's expectation, and the frame has the size of a random one, so that
    learning rates carry over.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948) starts from leading singular vectors of the weight, EVA
    (Paischer et al. 2024, arXiv 2410.07170) from those of the inputs, LoRA-GA (Wang et al. 2024, arXiv 2407.05000)
    from those of the gradient.
    """
    rows = leading_row_space(matrix, form.rank, seed)
    slots = None
    if align:
        slots, fit = align_row_space(rows, form.rank_shape, form.in_shape, form.separation_rank, seed=seed)
    else:
        padded = pad_columns(rows, form.in_width)
        fit = fit_row_space(padded, form.rank_shape, form.in_shape, form.separation_rank, seed=seed)
    return Start(_as_lora_a(fit.a, form, slots), rest.b, in_slots=slots, error=fit.error, rows=rows)


def gradient_start(
    gradient: Tensor,  # (m, n): dL/dW
    form: Form,
    rest: Start,
    align: bool = False,
    seed: int = 0,
) -> Start:
    """Return a start with A from the leading right singular vectors of the gradient and B's frame from the left ones.

    With B1 = 0 the first step moves B within the frame alone, along the gradient times A^T.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    start = row_space_start(gradient, form, rest, align, seed)
    columns = pad_columns(leading_row_space(gradient.T, form.rank, seed), form.out_width).T
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank, seed)
    return replace(start, b=_as_zero_b(b, form))


def product_start(
    init: str,
    weight: Tensor,  # (m, n)
    form: Form,
    scaling: float,
    residual: str,
    align: bool = False,
    seed: int = 0,
) -> Start:
    """Return A and B fitted together: scaling * B A is near the weight, or near its trailing singular part.

    `principal`: min ||W - scaling * B A||_F; `minor`: the same for the r smallest singular values; both by alternating
    least squares. `cp`: the factors U sqrt(S) and sqrt(S) V^T of the truncated SVD, each replaced by its nearest
    Kronecker sum (TensorLy's CP for three factors and more), scaling included. With residual `zero` only A's row space
    and B's frame are used, scaled as LoRA's.

    Reference: PiSSA (arXiv 2404.02948) for the leading part, MiLoRA (Wang et al. 2024, arXiv 2406.09044) for the
    trailing one.
    """
    rows = None
    if init == "cp":
        fitted = _one_by_one(weight, form, seed)
    elif init == "minor":
        part = trailing_part(weight, form.rank)
        fitted, rows = _together(part, form, align, seed), part[1]
    else:
        fitted = _together(weight.detach().to("cpu", torch.float64), form, align, seed)
    if residual == "zero":
        a = _as_lora_a(recondition(*fitted.a), form, fitted.in_slots)
        b = _as_zero_b(recondition(*fitted.b), form)
    else:
        share = scaling ** (-0.5 / len(form.rank_shape))  # of the scaling, for each factor of each side
        a, b = ([share * factor for factor in balance(*side)] for side in (fitted.a, fitted.b))
    return replace(fitted, a=a, b=b, rows=rows)


def _one_by_one(weight: Tensor, form: Form, seed: int) -> Start:
    left, right = leading_part(weight, form.rank, seed)
    columns, rows = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank, seed)
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank, seed)
    distance = torch.linalg.matrix_norm(columns @ rows - kron_sum(*b) @ kron_sum(*a))
    return Start(a, b, error=float(distance / torch.linalg.matrix_norm(columns @ rows)))


def _together(
    target: Tensor | tuple[Tensor, Tensor],  # (m, n), or (m, r) and (r, n) whose product it is
    form: Form,
    align: bool,
    seed: int,
) -> Start:
    shapes = (form.out_shape, form.rank_shape, form.in_shape, form.separation_rank)
    if align:
        out_slots, in_slots, fit = align_product(target, *shapes, seed=seed)
        return Start(fit.a, fit.b, in_slots, out_slots, fit.error)
    left, right = target if isinstance(target, tuple) else (target, None)
    if right is None:
        padded = pad_columns(pad_columns(left, form.in_width).T, form.out_width).T
        fit = fit_product(padded, *shapes, seed=seed)
    else:
        pair = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
        fit = fit_product(pair, *shapes, seed=seed)
    return Start(fit.a, fit.b, error=fit.error)


def _as_lora_a(
    factors: list[Tensor],  # (s, r_i, n_i), unit terms in all but the first
    form: Form,
    slots: Tensor | None,
) -> list[Tensor]:
    """Scale A such that ||A||_F^2 = r / 3 and its frame is as large as a random one."""
    scaled = _with_random_frame(factors, form)
    a = kron_sum(*scaled)
    length = torch.linalg.matrix_norm(a[:, : form.in_features] if slots is None else a[:, slots])
    return [scaled[0] * (sqrt(form.rank / 3) / length), *scaled[1:]]


def _as_zero_b(
    factors: list[Tensor],  # (s, m_i, r_i), unit terms in all but the first
    form: Form,
) -> list[Tensor]:
    """Keep B's frame, as large as a random one, and make B1 zero."""
    scaled = _with_random_frame(factors, form)
    return [torch.zeros_like(scaled[0]), *scaled[1:]]


def _with_random_frame(factors: list[Tensor], form: Form) -> list[Tensor]:
    frame = zip(factors[1:], _frame_scales(form), strict=True)
    return [factors[0], *(factor * (scale / factor.square().mean().sqrt()) for factor, scale in frame)]
