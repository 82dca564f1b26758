"""An exact weighted sum of updates B A as one update of the same kind: tensors to tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsr.algebra.separable import kron_sum, nearest_kron_sum

ROUNDOFF = 1e-12  # relative error of a decomposition in float64


@dataclass(frozen=True)
class Product:
    """The update `coefficient * kron_sum(*b) @ kron_sum(*a)`."""

    coefficient: float
    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each

    @property
    def first_rank(self) -> int:
        """The rank r_1 of the first factors."""
        return self.a[0].shape[1]


def sum_products(
    products: Sequence[Product],  # with equal n_i and m_i, and equal r_i except for r_1
    first_rank: int,  # R, at least the sum of their r_1
    most_terms: int,
) -> tuple[list[Tensor], list[Tensor]]:  # A: (S, R, n_1), (S, r_2, n_2), ...; B: (S, m_1, R), (S, m_2, r_2), ...
    """Return factors with `kron_sum(*b) @ kron_sum(*a) = sum_i c_i B_i A_i`: ranks add up in the first factor.

    sum_i c_i B_i A_i = [c_1 B_1, c_2 B_2, ...] [A_1; A_2; ...]. The stack is again a sum of Kronecker products, whose
    first factor carries the block index; E_i, R x r_1, places rows in block i:

        [A_1; A_2; ...] = sum_i sum_k (E_i A1_ik) ⊗ A2_ik
        [c_1 B_1, c_2 B_2, ...] = sum_i sum_k (c_i B1_ik E_i^T) ⊗ B2_ik

    It has S = sum_i s_i terms, or s if all products share their other factors (frozen frames from one seed). If that
    exceeds `most_terms`, a sum of two factors is decomposed again in float64: the SVD of the rearranged stack is exact
    and has no more terms than the shapes allow.

    Raises:
        ValueError: if the sum needs more terms than `most_terms`.
    """
    starts = [sum(product.first_rank for product in products[:i]) for i in range(len(products))]
    a = [[_rows(p.a[0], start, first_rank), *p.a[1:]] for p, start in zip(products, starts, strict=True)]
    b = [
        [p.coefficient * _rows(p.b[0].mT, start, first_rank).mT, *p.b[1:]]
        for p, start in zip(products, starts, strict=True)
    ]
    gather = _add_first if _share_others(a) and _share_others(b) else _append_terms
    left, right = gather(b), gather(a)
    terms = len(right[0])
    if terms <= most_terms:
        return right, left
    if len(right) > 2:
        raise ValueError(f"the sum has {terms} Kronecker terms of {len(right)} factors, but at most {most_terms} fit")
    return _fewest(right, most_terms), _fewest(left, most_terms)


def _rows(
    factor: Tensor,  # (s, r_1, n_1)
    start: int,
    count: int,
) -> Tensor:  # (s, count, n_1)
    return torch.nn.functional.pad(factor, (0, 0, start, count - start - factor.shape[1]))


def _share_others(sides: Sequence[list[Tensor]]) -> bool:
    first = sides[0][1:]
    return all(
        one.shape == two.shape and torch.equal(one, two)
        for side in sides[1:]
        for one, two in zip(first, side[1:], strict=True)
    )


def _add_first(sides: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.stack([side[0] for side in sides]).sum(0), *sides[0][1:]]


def _append_terms(sides: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(factors) for factors in zip(*sides, strict=True)]


def _fewest(factors: list[Tensor], terms: int) -> list[Tensor]:
    matrix = kron_sum(*(factor.detach().double().cpu() for factor in factors))
    rows, columns = (tuple(factor.shape[axis] for factor in factors) for axis in (1, 2))
    found = nearest_kron_sum(matrix, rows, columns, terms)
    if torch.linalg.matrix_norm(matrix - kron_sum(*found)) > ROUNDOFF * torch.linalg.matrix_norm(matrix):
        raise ValueError(f"the sum has {len(factors[0])} Kronecker terms, but {terms} cannot represent it exactly")
    return found
