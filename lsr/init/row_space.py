"""A from the leading right singular vectors of a matrix, as closely as its form allows; B1 = 0."""

from dataclasses import replace

from torch import Tensor

from lsr.algebra.fit import fit_row_space
from lsr.algebra.separable import pad_columns
from lsr.algebra.spectrum import leading_row_space
from lsr.init import random
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Return `in_row_space` of the leading right singular vectors of the weight.

    Raises:
        ValueError: if the weight is zero, not finite or too small.
    """
    return in_row_space(leading_row_space(source.weight(), source.form.rank, source.seed), source)


def in_row_space(
    rows: Tensor,  # (r, n), orthonormal: the leading right singular vectors of a matrix
    source: Source,
) -> Start:
    """Return random factors, except that A spans the rows as closely as its form allows.

    A minimizes ||V_r^T - C A||_F over A and C (r x r): only its row space matters in the first steps, because B, which
    starts at zero, can learn any C.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948) starts from the weight's leading singular vectors, LoRA-GA
    (Wang et al. 2024, arXiv 2407.05000) from the gradient's.
    """
    form = source.form
    padded = pad_columns(rows, form.in_width)
    fit = fit_row_space(padded, form.rank_shape, form.in_shape, form.separation_rank, seed=source.seed)
    return replace(random.start(source), a=random.as_random_a(fit.a, form), error=fit.error, rows=rows)
