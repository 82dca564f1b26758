"""Both sides of the truncated SVD of the weight, each decomposed on its own. The initial update is folded."""

import torch

from lsr.algebra.separable import kron_sum, nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import leading_part
from lsr.init.initialization import Source, Start
from lsr.init.principal import unscaled


def start(source: Source) -> Start:
    """Return the nearest Kronecker sums of U sqrt(S) and sqrt(S) V^T; from three factors on, by TensorLy's CP.

    Raises:
        ValueError: if the weight is zero, not finite or too small.
    """
    form, seed = source.form, source.seed
    left, right = leading_part(source.weight(), form.rank, seed)
    columns, rows = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank, seed)
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank, seed)
    distance = torch.linalg.matrix_norm(columns @ rows - kron_sum(*b) @ kron_sum(*a))
    return unscaled(Start(a, b, float(distance / torch.linalg.matrix_norm(columns @ rows))), source)
