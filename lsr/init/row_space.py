"""A from the leading right singular vectors of a matrix, as well as its form allows; B1 = 0."""

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
    """Return random factors but for an A that spans the rows, as well as its form allows.

    min over A and C (r x r) of ||V_r^T - C A||_F: only the row space of A matters for the first steps, for B = 0
    learns any C.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948) starts from leading singular vectors of the weight, LoRA-GA
    (Wang et al. 2024, arXiv 2407.05000) from those of the gradient.
    """
    form = source.form
    padded = pad_columns(rows, form.in_width)
    fit = fit_row_space(padded, form.rank_shape, form.in_shape, form.separation_rank, seed=source.seed)
    return replace(random.start(source), a=random.as_random_a(fit.a, form), error=fit.error, rows=rows)
