"""The separable decomposition of the weight: PiSSA in Kronecker form. The initial update is folded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsr.algebra.fit import fit_product
from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import balance, pad_columns
from lsr.algebra.spectrum import Matrix
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Return the factors of min ||W - scaling * B A||_F: TensorLy's decomposition, improved by least squares.

    Raises:
        ValueError: if the weight is zero, not finite or too small.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948).
    """
    return fitted(source.weight().detach().to("cpu", torch.float64), source)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the weight, or joint ones over several weights.

    Raises:
        ValueError: as `start`.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), whose B is scaled by the singular values.
    """
    return framed([source.weight() for source in sources], sources[0])


def fitted(
    matrix: Matrix,  # (m, n)
    source: Source,
) -> Start:
    """Return the factors of min ||matrix - scaling * B A||_F, balanced, with the scaling distributed over them."""
    form = source.form
    left, right = (matrix, None) if isinstance(matrix, Tensor) else matrix
    rows = pad_columns(left.T, form.out_width).T
    padded = pad_columns(rows, form.in_width) if right is None else (rows, pad_columns(right, form.in_width))
    fit = fit_product(padded, form.out_shape, form.rank_shape, form.in_shape, form.separation_rank, seed=source.seed)
    share = source.scaling ** (-0.5 / len(form.rank_shape))  # each factor's share of the scaling
    a, b = ([share * factor for factor in balance(*side)] for side in (fit.a, fit.b))
    return Start(a, b, fit.error)


def framed(matrices: Sequence[Matrix], source: Source) -> Start:
    """Return the frames that capture most of one matrix (m, n), or of several jointly, in the form of the source.

    Raises:
        ValueError: as `lsr.algebra.frames.leading_frames`.
    """
    left, right = (paired_frames if source.paired else leading_frames)(matrices, source.form.rank, source.seed)
    return Start([right[None].contiguous()], [left[None].contiguous()])
