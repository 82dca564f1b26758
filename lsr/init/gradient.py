"""A and B's frame from the leading singular vectors of the loss gradient; B1 = 0."""

from dataclasses import replace

from lsr.algebra.separable import nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import leading_row_space
from lsr.init.initialization import Source, Start
from lsr.init.random import as_zero_b
from lsr.init.row_space import in_row_space


def start(source: Source) -> Start:
    """Return a start with A from the right singular vectors of the gradient and B's frame from the left ones.

    With B1 = 0 the first step moves B within the frame alone, along the gradient times A^T.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    if source.gradient is None:
        raise ValueError("the initialization 'gradient' needs examples: see lsr.start_from_examples")
    form = source.form
    columns = pad_columns(leading_row_space(source.gradient.T, form.rank, source.seed), form.out_width).T
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank, source.seed)
    return replace(in_row_space(source.gradient, source), b=as_zero_b(b, form))
