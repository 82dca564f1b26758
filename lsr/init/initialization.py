"""Initializations: what they read of a layer and what they return; from the seed, or from directions of a matrix.

The matrix is the weight, or a statistic of examples: the loss gradient, or in its place the update of a short training
run, which accumulates gradients. A and B are from its leading singular vectors; B1, or the core between frames, is
zero, unless a warm start goes on from where the short run ended. A budget of directions goes where they are largest.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isfinite, sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.algebra import spectrum
from lsr.algebra.separable import Form, balance, kron_sum, nearest_kron_sum
from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of

MOST = 64  # directions per layer, of a budget


@dataclass(frozen=True)
class Source:
    """What an initialization may read; the same source gives the same bytes."""

    form: Form
    # (m, n): what it reads, the weight, or of examples the mean of dL/dW or the update of a short training run. It is a
    # function, because a quantized weight is dequantized only where it is read.
    matrix: Callable[[], Matrix]
    scaling: float = 1.0
    seed: int = 0  # of randomized decompositions
    generator: torch.Generator | None = None  # for random draws; None: torch's global one
    zero: bool = True  # B1 = 0 where B is drawn
    paired: bool = False  # frames for a diagonal core: the i-th direction of B belongs to the i-th of A


@dataclass(frozen=True)
class Start:
    """Initial factors."""

    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each


class Initialization(NamedTuple):
    """An initialization scheme.

    `start` returns trainable factors with B A = 0, and `frames` the frames around a core, for one layer or for all that
    share them.

    A scheme with a `core` goes on from the short training run whose update it reads: the head stays as trained, `start`
    returns factors of the update, and `core` the best core between the frames of a layer. Otherwise the core is zero.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    start: Callable[[Source], Start]
    frames: Callable[[Sequence[Source]], Start]
    core: Callable[[Source, Tensor, Tensor], Tensor] | None = None  # of B (m, r) and A (r, n)

    @property
    def goes_on(self) -> bool:
        """Whether the adapter begins with the update of a short training run, and the head as trained by it."""
        return self.core is not None


def random_start(source: Source) -> Start:
    """Draw factors such that the entries of A have LoRA's variance, 1 / (3 in_features), and B is zero, in float32.

    A1 ~ N(0, 1/(3 n)), A2 and B2 ~ N(0, 1/s); B1 = 0. Only B1 may be zero: if B2 were too, all gradients would vanish.
    With `source.zero` false, B1 is drawn at the scale of LoRA's B, so that the fresh adapter changes the model.

    Reference: LoRA's kaiming_uniform(sqrt 5), Hu et al. 2021 (arXiv 2106.09685); here s affects only the variance.
    """
    form, second = source.form, 1 / sqrt(source.form.separation_rank)
    scales = {
        "factor_A1": 1 / sqrt(3 * form.in_features),
        "factor_A2": second,
        "factor_B1": 0.0 if source.zero else 1 / sqrt(3 * form.rank),
        "factor_B2": second,
    }
    with torch.device("cpu"):
        drawn = [
            scales[name] * torch.randn(*shape, generator=source.generator) for name, shape in form.factor_shapes.items()
        ]
    count = len(form.rank_shape)
    return Start(drawn[:count], drawn[count:])


def random_frames(sources: Sequence[Source]) -> Start:
    """Draw orthonormal frames around a core, for one layer or for all that share them."""
    form, generator = sources[0].form, sources[0].generator

    def draw(width: int) -> Tensor:  # (width, r), orthonormal columns
        return torch.linalg.qr(torch.randn(form.rank, width, generator=generator, dtype=torch.float64).T).Q

    # Name the device: under `with torch.device("meta")` nothing would be drawn.
    with torch.device("cpu"):
        right, left = draw(form.in_features), draw(form.out_features)
    return Start([right.T[None].contiguous()], [left[None].contiguous()])


def directed_start(source: Source) -> Start:
    """Return A and B's frame as the sums nearest to the leading directions of a matrix, with LoRA's scale.

    With B1 = 0 the first step moves B along the gradient times A^T: of a gradient, its gain is that of its energy in
    the rows of A.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    form = source.form
    sides = _nearest(*spectrum.leading_frames(_matrices([source]), form.rank, source.seed), form)
    # Learning rates carry over from random factors: the second ones get their norm, and A has ||A||_F^2 = r / 3, which
    # LoRA's has on average.
    second = 1 / sqrt(form.separation_rank)
    a, b = ([one, *(factor * (second / factor.square().mean().sqrt()) for factor in others)] for one, *others in sides)
    length = torch.linalg.matrix_norm(kron_sum(*a)[:, : form.in_features])
    return Start([a[0] * (sqrt(form.rank / 3) / length), *a[1:]], [torch.zeros_like(b[0]), *b[1:]])


def warm_start(source: Source) -> Start:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor a side, that SVD itself."""
    left, values, right = leading_svd(_matrices([source])[0], source.form.rank, source.seed)
    roots = (values / source.scaling).sqrt()
    a, b = _nearest(left * roots, roots[:, None] * right, source.form)
    return Start(balance(*a), balance(*b))


def _nearest(left: Tensor, right: Tensor, form: Form) -> tuple[list[Tensor], list[Tensor]]:
    """Return the factors of A and B that are nearest to B (m, r) and A (r, n)."""
    rows = F.pad(right, (0, form.in_width - form.in_features))
    columns = F.pad(left, (0, 0, 0, form.out_width - form.out_features))
    return (
        nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank),
        nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank),
    )


def directed_frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of a matrix, or joint ones over several layers.

    Only the directions are kept: frames scaled by the singular values learned less.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), of the weight, whose B is scaled; LoRA-SB (Ponkshe et al.
    2024, arXiv 2411.19557), of the first full gradient.
    """
    first, of_core = sources[0], spectrum.paired_frames if sources[0].paired else spectrum.leading_frames
    left, right = of_core(_matrices(sources), first.form.rank, first.seed)
    return Start([right[None].contiguous()], [left[None].contiguous()])


def warm_core(source: Source, b: Tensor, a: Tensor) -> Tensor:  # (m, r), (r, n) -> (r, r), or (r,) of paired ones
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored."""
    between = spectrum.diagonal_between if source.paired else spectrum.core_between
    return between(source.matrix(), b.double(), a.double()) / source.scaling


def allocate(
    statistics: Mapping[str, Matrix],  # gradients or updates, (m, n) by layer name
    budget: int,
    seed: int = 0,
) -> dict[str, int]:
    """Return each layer's share of the `budget` largest singular values over all layers; layers with none are left out.

    Raises:
        ValueError: if the budget is not positive or exceeds what the layers can hold, or all gradients are zero.
    """
    norm = hypot(*map(norm_of, statistics.values()))
    if not 0 < norm < float("inf"):
        raise ValueError(f"cannot allocate directions: the norm of the gradients is {norm}")
    values = {name: leading_svd(matrix, min(MOST, *shape_of(matrix)), seed)[1] for name, matrix in statistics.items()}
    most = sum(map(len, values.values()))
    if not 1 <= budget <= most:
        raise ValueError(f"the budget must be in [1, {most}], at most {MOST} directions per layer, got {budget}")
    names = [name for name, of_layer in values.items() for _ in of_layer]
    order = torch.cat(list(values.values())).argsort(descending=True, stable=True)[:budget]
    chosen = Counter(names[index] for index in order.tolist())
    return {name: chosen[name] for name in values if name in chosen}


def _matrices(sources: Sequence[Source]) -> list[Matrix]:
    matrices = [source.matrix() for source in sources]
    if not isfinite(norm := sum(map(norm_of, matrices))):
        raise ValueError("the weight, or its gradient or update over the examples, is not finite")
    if not norm:
        zero = "the weight, or its gradient or update over the examples, is zero and shows no direction"
        raise ValueError(f"{zero}; initialize it as 'random', or leave it out of target_modules")
    return matrices


INITIALIZATIONS = {
    "random": Initialization("seed", random_start, random_frames),
    "principal": Initialization("weight", directed_start, directed_frames),
    "gradient": Initialization("gradient", directed_start, directed_frames),
    "update": Initialization("update", directed_start, directed_frames),
    "warm": Initialization("update", warm_start, directed_frames, core=warm_core),
}
