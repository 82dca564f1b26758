"""Initial factors from pretrained weights, and what they capture of them. All in float64, one layer at a time."""

from dataclasses import dataclass
from math import prod, sqrt

import tensorly as tl
import torch
from tensorly.tenalg import svd_interface
from torch import Tensor

from lsr.separable import Shape, kron_sum, nearest_kron_sum, pad_columns

FULL_SVD_UP_TO = 1024  # smaller side of a weight; above it a seeded randomised SVD is as good and far faster


def random_factors(
    rank_shape: Shape,
    in_shape: Shape,
    out_shape: Shape,
    in_features: int,
    separation_rank: int,
    zero: bool,
    generator: torch.Generator | None,
) -> tuple[list[Tensor], list[Tensor]]:  # A factors (s, r_i, n_i), B factors (s, m_i, r_i), float32
    """Draw factors such that A has the variance of LoRA's, 1 / (3 in_features), and B is zero.

    A1 ~ N(0, 1/(3 n)), A2 and B2 ~ N(0, 1/s), further ones ~ N(0, 1); B1 = 0. Only B1 may be zero: with B2 = 0 too all
    gradients would vanish. `zero=False` draws B1 as LoRA would draw B, so that the fresh adapter changes the model.

    Reference: LoRA's kaiming_uniform(sqrt 5), Hu et al. 2021 (arXiv 2106.09685); here s enters the variance only.
    """
    frame = [1 / sqrt(separation_rank)] + [1.0] * (len(rank_shape) - 2)
    a_scales = [1 / sqrt(3 * in_features), *frame]
    b_scales = [0.0 if zero else 1 / sqrt(3 * prod(rank_shape)), *frame]

    def draw(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(separation_rank, *shape, generator=generator)

    # The device is named: under `with torch.device("meta")` there would be nothing to draw.
    with torch.device("cpu"):
        a = [draw(scale, r, n) for scale, r, n in zip(a_scales, rank_shape, in_shape, strict=True)]
        b = [draw(scale, m, r) for scale, r, m in zip(b_scales, rank_shape, out_shape, strict=True)]
    return a, b


def leading_row_space(
    weight: Tensor,  # (m, n)
    rank: int,
    seed: int = 0,
) -> Tensor:  # (rank, n), float64
    """Return the leading right singular vectors of a weight as orthonormal rows, with canonical signs.

    The sign of a singular vector is arbitrary and differs between LAPACK drivers, yet a flip changes the nearest
    Kronecker sum: so the largest entry of each row is made positive.

    Raises:
        ValueError: if the rank exceeds a side of the weight, or the weight is zero or not finite.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"the rank must be in [1, {min(weight.shape)}] for a weight {tuple(weight.shape)}, got {rank}")
    matrix = weight.detach().to("cpu", torch.float64).numpy()
    norm = float(abs(matrix).max())
    if not 0 < norm < float("inf"):
        raise ValueError(f"the weight has no row space to start from: its largest entry is {norm}")
    method = "truncated_svd" if min(matrix.shape) <= FULL_SVD_UP_TO else "randomized_svd"
    options = {} if method == "truncated_svd" else {"random_state": seed, "n_iter": 5, "n_oversamples": 16}
    with tl.backend_context("numpy", local_threadsafe=True):
        _, _, right = svd_interface(matrix, method, n_eigenvecs=rank, **options)
    rows = torch.from_numpy(right.copy())
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0)


def row_space_factors(
    weight: Tensor,  # (m, n)
    rank_shape: Shape,
    in_shape: Shape,
    separation_rank: int,
    seed: int = 0,
) -> list[Tensor]:  # A factors (s, r_i, n_i), float64
    """Return the nearest Kronecker sum to the leading right singular vectors of W, scaled as LoRA's A.

    V_r^T ~ sum_k A1_k ⊗ A2_k (⊗ ...), then ||A||_F^2 = r / 3, LoRA's expectation, and rms(A2) = 1 / sqrt(s) as in
    `random_factors`, so that learning rates carry over.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948) for starting from leading singular vectors; Van Loan &
    Pitsianis 1993 for the nearest Kronecker sum.
    """
    rank = prod(rank_shape)
    rows = pad_columns(leading_row_space(weight, rank, seed), prod(in_shape))
    factors = nearest_kron_sum(rows, rank_shape, in_shape, separation_rank, seed)
    targets = [1 / sqrt(separation_rank)] + [1.0] * (len(factors) - 2)
    for position, target in enumerate(targets, start=1):
        factors[position] = factors[position] * (target / factors[position].square().mean().sqrt())
    length = torch.linalg.matrix_norm(kron_sum(*factors)[:, : weight.shape[1]])
    factors[0] = factors[0] * (sqrt(rank / 3) / length)
    return factors


@dataclass(frozen=True)
class Captured:
    """How much of a weight's leading row space a factor A reaches. All values are fractions in [0, 1]."""

    overlap: float  # mean squared cosine between row(A) and the r leading right singular vectors
    energy: float  # ||W P||^2 / ||W||^2 with P the projection onto row(A)


def captured_by_rows(
    weight: Tensor,  # (m, n)
    leading: Tensor,  # (r, n), orthonormal rows
    a: Tensor,  # (r', n)
) -> Captured:
    """Return what the row space of `a` holds of the leading rows and of the weight itself."""
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
    """Return what the leading right singular vectors hold that fit into `stored` numbers: what LoRA's A could hold.

    `stored / n` vectors; a fraction of a vector counts as that fraction of what it would add.
    """
    energies = torch.linalg.svdvals(weight.detach().double()).square()
    vectors = min(stored / weight.shape[1], float(len(energies)))
    whole = int(vectors)
    next_one = float(energies[whole]) if whole < len(energies) else 0.0
    energy = float(energies[:whole].sum()) + (vectors - whole) * next_one
    return Captured(min(vectors / rank, 1.0), energy / float(energies.sum()))
