"""What rounding takes from an update: condition numbers of its factors, and the dtypes that they rule out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsr.algebra.separable import condition_number, kron_sum
from lsr.algebra.spectrum import singular_values_of_pair

# Unit roundoffs: with the condition number, the relative error that storing factors in a dtype causes in their product.
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
TOLERATED_LOSS = 0.05  # relative error of the update from which on a dtype is warned about


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without its module: bfloat16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Conditions:
    """Condition numbers, 1 where no digits are lost: of A and of B in their terms, and of their product."""

    a: float
    b: float
    update: float

    @property
    def losses(self) -> dict[str, float]:
        """By dtype, the relative error of the update if its factors were stored in it."""
        return {dtype_name(dtype): roundoff * max(self.a, self.b, self.update) for dtype, roundoff in ROUNDOFF.items()}


def conditions_of(
    a: Sequence[Tensor],  # (s, r_i, n_i) each
    b: Sequence[Tensor],  # (s, m_i, r_i) each
) -> Conditions:
    """Return the condition numbers of an update B A."""
    return Conditions(condition_number(*a), condition_number(*b), update_condition_number(a, b))


def update_condition_number(
    a: Sequence[Tensor],  # (s, r_i, n_i) each
    b: Sequence[Tensor],  # (s, m_i, r_i) each
) -> float:
    """Return the condition number of B A in its terms, 1 for a zero product: cancellation within and between A and B.

    sqrt(sum_k prod_i ||A_i[k]||^2) * sqrt(sum_k prod_i ||B_i[k]||^2) / ||B A||_F.
    """
    lengths = [torch.stack([f.double().flatten(1).norm(dim=1) for f in side]).prod(dim=0).norm() for side in (a, b)]
    total = singular_values_of_pair(kron_sum(*b), kron_sum(*a)).norm()
    return float(lengths[0] * lengths[1] / total) if total > 0 else 1.0
