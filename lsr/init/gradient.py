"""A and B's frame from the leading singular vectors of the loss gradient; B1, or the core between the frames, is zero.

The update of a short training run takes the place of the gradient in the same way: it accumulates gradients.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lsr.algebra.fit import fit_row_space
from lsr.algebra.frames import leading_frames
from lsr.algebra.separable import nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import Matrix
from lsr.init import random
from lsr.init.frames import framed
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Take A from the right singular vectors of the gradient and B's frame from the left ones.

    With B1 = 0 the first step moves B only within the frame, along the gradient times A^T.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    form = source.form
    left, right = leading_frames(_gradients([source]), form.rank, source.seed)
    columns = pad_columns(left.T, form.out_width).T
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank, source.seed)
    return replace(_in_row_space(right, source), b=random.as_zero_b(b, form))


def _in_row_space(
    rows: Tensor,  # (r, n), orthonormal
    source: Source,
) -> Start:
    """Return random factors, except that A spans the rows as closely as its form allows.

    A minimizes ||V_r^T - C A||_F over A and C (r x r): only its row space matters in the first steps, because B, which
    starts at zero, can learn any C.
    """
    form = source.form
    padded = pad_columns(rows, form.in_width)
    fit = fit_row_space(padded, form.rank_shape, form.in_shape, form.separation_rank, seed=source.seed)
    return replace(random.start(source), a=random.as_random_a(fit.a, form), error=fit.error, rows=rows)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the gradient, or joint ones over several layers and data sets.

    Only the directions are kept: frames scaled by the singular values learned less.

    Raises:
        ValueError: as `start`.

    Reference: LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557), which takes the first full gradient.
    """
    return framed(_gradients(sources), sources[0])


def _gradients(sources: Sequence[Source]) -> list[Matrix]:
    gradients = [gradient for source in sources for gradient in source.gradients]
    if not gradients:
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    return gradients
