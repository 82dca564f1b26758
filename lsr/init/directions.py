"""A and B's frame from the leading singular vectors of a matrix; B1, or the core between frames of it, is zero.

The matrix is the weight, or a statistic of examples: the loss gradient, or in its place the update of a short training
run, which accumulates gradients.
"""

from collections.abc import Sequence
from math import isfinite

from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import Matrix, norm_of
from lsr.init.initialization import Source, Start
from lsr.init.random import as_random_a, as_zero_b


def start_of_weight(source: Source) -> Start:
    """Return A and B's frame as the sums nearest to the leading directions of the weight, with LoRA's scale."""
    return _start(source.weight(), source)


def start(source: Source) -> Start:
    """Return the same for the gradient: with B1 = 0 the first step moves B along the gradient times A^T.

    Its gain is the energy of the gradient in the rows of A.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    return _start(statistics_of([source])[0], source)


def _start(matrix: Matrix, source: Source) -> Start:
    # TensorLy decomposes the matrix, and then both sides of it.
    form = source.form
    left, right = leading_frames([matrix], form.rank, source.seed)
    columns, rows = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank)
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank)
    return Start(as_random_a(a, form), as_zero_b(b, form))


def frames_of_weights(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the weight, or joint ones over several weights.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), whose B is scaled by the singular values.
    """
    return _frames([source.weight() for source in sources], sources[0])


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the gradient, or joint ones over several layers.

    Only the directions are kept: frames scaled by the singular values learned less.

    Reference: LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557), which takes the first full gradient.
    """
    return _frames(statistics_of(sources), sources[0])


def _frames(matrices: Sequence[Matrix], source: Source) -> Start:
    left, right = (paired_frames if source.paired else leading_frames)(matrices, source.form.rank, source.seed)
    return Start([right[None].contiguous()], [left[None].contiguous()])


def statistics_of(sources: Sequence[Source]) -> list[Matrix]:
    """Return the gradients or updates of sources.

    Raises:
        ValueError: if there are none, or of zeros alone, or one is not finite; names the ways out.
    """
    matrices = [source.statistic for source in sources if source.statistic is not None]
    if len(matrices) < len(sources):
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    if not isfinite(norm := sum(map(norm_of, matrices))):
        raise ValueError("the gradient or update over the examples is not finite")
    if not norm:
        raise ValueError(
            "no gradient of the loss over the examples reaches it, so they show it no direction; initialize it as "
            "'random' or 'principal', which read no examples, or leave it out of target_modules"
        )
    return matrices
