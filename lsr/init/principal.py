"""A and B's frame from the leading singular vectors of the weight; B1, or the core between frames of it, is zero."""

from collections.abc import Sequence

from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import Matrix
from lsr.init.initialization import Source, Start
from lsr.init.random import as_random_a, as_zero_b


def start(source: Source) -> Start:
    """Return `directed` by the weight.

    Raises:
        ValueError: as `directed`.
    """
    return directed(source.weight(), source)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the weight, or joint ones over several weights.

    Raises:
        ValueError: as `framed`.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), whose B is scaled by the singular values.
    """
    return framed([source.weight() for source in sources], sources[0])


def directed(matrix: Matrix, source: Source) -> Start:
    """Return A and B's frame as the sums nearest to the leading directions of a matrix (m, n), with LoRA's scale.

    TensorLy decomposes the matrix, and then both sides of it.

    Raises:
        ValueError: if the rank exceeds a side of the matrix, or it is zero or not finite.
    """
    form = source.form
    left, right = leading_frames([matrix], form.rank, source.seed)
    columns, rows = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank)
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank)
    return Start(as_random_a(a, form), as_zero_b(b, form))


def framed(matrices: Sequence[Matrix], source: Source) -> Start:
    """Return the frames that capture most of one matrix (m, n), or of several jointly, in the form of the source.

    Raises:
        ValueError: as `lsr.algebra.frames.leading_frames`.
    """
    left, right = (paired_frames if source.paired else leading_frames)(matrices, source.form.rank, source.seed)
    return Start([right[None].contiguous()], [left[None].contiguous()])
