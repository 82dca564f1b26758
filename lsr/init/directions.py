"""A and B from the leading singular vectors of a matrix, how far a budget of them goes, and cores between them.

The matrix is the weight, or a statistic of examples: the loss gradient, or in its place the update of a short training
run, which accumulates gradients. From there B1, or the core between frames, is zero; a warm start goes on from where
the short run ended.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import hypot, isfinite, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.algebra.frames import core_between, diagonal_between, leading_frames, paired_frames
from lsr.algebra.separable import Form, balance, kron_sum, nearest_kron_sum
from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of
from lsr.init.initialization import Source, Start

MOST = 64  # directions per layer, of a budget


def start(source: Source) -> Start:
    """Return A and B's frame as the sums nearest to the leading directions of a matrix, with LoRA's scale.

    With B1 = 0 the first step moves B along the gradient times A^T: of a gradient, its gain is that of its energy in
    the rows of A.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    form = source.form
    sides = _nearest(*leading_frames(_matrices([source]), form.rank, source.seed), form)
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


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of a matrix, or joint ones over several layers.

    Only the directions are kept: frames scaled by the singular values learned less.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), of the weight, whose B is scaled; LoRA-SB (Ponkshe et al.
    2024, arXiv 2411.19557), of the first full gradient.
    """
    first, of_core = sources[0], paired_frames if sources[0].paired else leading_frames
    left, right = of_core(_matrices(sources), first.form.rank, first.seed)
    return Start([right[None].contiguous()], [left[None].contiguous()])


def warm_core(source: Source, b: Tensor, a: Tensor) -> Tensor:  # (m, r), (r, n) -> (r, r), or (r,) of paired ones
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored."""
    between = diagonal_between if source.paired else core_between
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
