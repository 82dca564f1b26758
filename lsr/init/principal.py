"""The separable decomposition of the weight: PiSSA in Kronecker form. The initial update is folded."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from lsr.algebra.fit import fit_product
from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import balance, kron_sum, nearest_kron_sum, pad_columns
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix, distance_of_pairs, leading_svd, norm_of
from lsr.init.initialization import Source, Start

MOST_DOUBLINGS = 4  # of the number of terms in `errors_by_terms`: up to 16


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


def errors_by_terms(weight: Tensor, form: Form, seed: int = 0) -> dict[int, float]:
    """Return the relative error of TensorLy's decomposition of the weight's leading part, by its number of terms.

    Both sides of the truncated SVD of rank r are decomposed into 1, 2, 4, ... Kronecker products, up to as many as the
    form can use. The error is a ratio of Frobenius norms; it shows how separable the weight is.

    Raises:
        ValueError: if the weight is not finite.
    """
    if not isfinite(norm := norm_of(weight)):
        raise ValueError(f"expected a finite weight to decompose, got one of norm {norm}")
    left, values, right = leading_svd(weight, form.rank, seed)
    columns = pad_columns((left * values.sqrt()).T, form.out_width).T
    rows = pad_columns(values.sqrt()[:, None] * right, form.in_width)
    errors = {}
    for terms in (2**power for power in range(MOST_DOUBLINGS + 1)):
        if terms <= form.max_separation_rank:
            b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, terms)
            a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, terms)
            distance = distance_of_pairs((columns, rows), (kron_sum(*b), kron_sum(*a)))
            errors[terms] = distance / (float(values.norm()) or 1.0)  # zero is decomposed exactly
    return errors


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
