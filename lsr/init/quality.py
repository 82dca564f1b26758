"""How much of a weight the initial factors capture, compared with other adapters of the same size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lsr.algebra.spectrum import leading_part


@dataclass(frozen=True)
class Captured:
    """How much of a weight the row space of A captures. All values are fractions in [0, 1]."""

    overlap: float  # mean squared cosine between row(A) and the r leading right singular vectors
    energy: float  # ||W P||^2 / ||W||^2 with P the projection onto row(A)


def captured_by_rows(
    weight: Tensor,  # (m, n)
    leading: Tensor,  # (r, n), orthonormal rows
    a: Tensor,  # (r', n)
) -> Captured:
    """Return how much of the leading rows, and of the weight itself, the row space of `a` captures."""
    basis = torch.linalg.qr(a.double().T).Q  # (n, r')
    weight = weight.detach().double()
    overlap = (leading @ basis).square().sum() / len(leading)
    energy = (weight @ basis).square().sum() / weight.square().sum()
    return Captured(float(overlap), float(energy))


def captured_by_svd(
    weight: Tensor,  # (m, n)
    rank: int,
    stored: int,
) -> Captured:
    """Return what `stored` parameters capture as leading right singular vectors: the best that LoRA's A could do.

    That is `stored / n` vectors, with a fractional vector counted proportionally.
    """
    vectors = stored / weight.shape[1]
    return Captured(min(vectors / rank, 1.0), _leading_energy(weight, vectors))


def captured_by_update(
    weight: Tensor,  # (m, n)
    update: Tensor,  # (m, n)
) -> float:
    """Return 1 - ||W - update||_F^2 / ||W||_F^2: 1 for the weight itself, 0 for zero, negative if worse than zero."""
    weight = weight.detach().double()
    return 1 - float((weight - update.double()).square().sum() / weight.square().sum())


def captured_by_lora(
    weight: Tensor,  # (m, n)
    stored: int,
) -> float:
    """Return how much of the weight the best LoRA of `stored` parameters captures, the truncated SVD.

    Each unit of rank costs m + n parameters; a fractional one is counted proportionally.

    Reference: Eckart & Young 1936.
    """
    return _leading_energy(weight, stored / sum(weight.shape))


def _leading_energy(weight: Tensor, count: float) -> float:
    whole = int(count)
    if whole >= min(weight.shape):
        return 1.0
    left, _ = leading_part(weight, whole + 1)
    energies = left.square().sum(dim=0).square()  # columns of U S^1/2
    captured = float(energies[:whole].sum() + (count - whole) * energies[whole])
    return captured / float(weight.detach().double().square().sum())
