"""The effect of rounding on an update: its condition number, and how much of it may be lost."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsr.algebra.separable import kron_sum
from lsr.algebra.spectrum import norm_of_pair

TOLERATED_LOSS = 0.05  # relative error of the update from which on an export in a dtype is refused


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without the module, for example bfloat16."""
    return str(dtype).removeprefix("torch.")


def update_condition_number(
    a: Sequence[Tensor],  # (s, r_i, n_i) each
    b: Sequence[Tensor],  # (s, m_i, r_i) each
) -> float:
    """Return the condition number of B A with respect to its terms: cancellation within and between A and B.

    sqrt(sum_k prod_i ||A_i[k]||^2) * sqrt(sum_k prod_i ||B_i[k]||^2) / ||B A||_F, and 1 for a zero product.
    """
    lengths = [torch.stack([f.double().flatten(1).norm(dim=1) for f in side]).prod(dim=0).norm() for side in (a, b)]
    total = norm_of_pair(kron_sum(*b), kron_sum(*a))
    return float(lengths[0] * lengths[1] / total) if total > 0 else 1.0
