"""An update B A written with few Kronecker terms, and the distance that this leaves: mathematics of compress and prune.

Nothing of the size of the update is formed: it is given as a pair of thin matrices, and so is every difference.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from lsr.algebra.fit import fit_product
from lsr.algebra.separable import kron_sum, nearest_kron_sum, pad_columns
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import distance_of_pairs, singular_values_of_pair
from lsr.algebra.sweeps import Factors
from lsr.init.random import random_factors

# Tighter than for a start, where training goes on: what is left out here is left out for good.
SWEEPS = 200
TOLERANCE = 1e-4
# Where the factors span more rows or columns than are used.
ROUNDS, SWEEPS_A_ROUND = 50, 5
GAIN = 1e-3  # relative gain in distance of the last round
EXACT = 1e-7  # relative distance that float32 does not resolve


@dataclass(frozen=True)
class Update:
    """What is to be written: `left @ right`, in the first rows and columns of what the factors span."""

    left: Tensor  # (m, k)
    right: Tensor  # (k, n)

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return float(singular_values_of_pair(self.left, self.right).norm())

    def spread(self, form: Form) -> tuple[Tensor, Tensor]:  # (m1 * ... * mD, k), (k, n1 * ... * nD)
        """Return both sides on the factors' span in float64, zero in the padding."""
        left, right = self.left.detach().double(), self.right.detach().double()
        return pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)


@dataclass(frozen=True)
class Reduced:
    """Factors in float32, as they are stored, and the certificate of what they leave out."""

    a: Factors  # (s, r_i, n_i) each
    b: Factors  # (s, m_i, r_i) each
    error: float  # ||update - B A||_F / ||update||_F: a ratio, 0 is exact
    norm: float  # ||update||_F

    @property
    def separation_rank(self) -> int:
        """The number of terms."""
        return len(self.a[0])


def fit_update(
    update: Update,
    form: Form,
    sides: tuple[Tensor, Tensor] | None = None,  # (m1 * ... * mD, r), (r, n1 * ... * nD)
    seed: int = 0,
) -> Reduced:
    """Return the best found B A of a form for an update.

    The fit starts from the sides of the truncated SVD, and from the leading terms of `sides`, in whose basis the update
    is known to be separable, or of `left` and `right` if they have the rank of the form. The better of both is
    returned.

    Raises:
        ValueError: if the form does not fit the update, or the update is not finite.
    """
    norm = update.norm
    if norm == 0:  # nothing to fit: a fresh adapter is the same
        return Reduced(*random_factors(form, True, torch.Generator().manual_seed(seed)), 0.0, 0.0)
    if sides is None and len(update.right) == form.rank:
        sides = update.spread(form)
    best: Reduced | None = None
    for start in (None,) if sides is None else (drop_terms(sides, form, seed), None):
        a, b = ([factor.float() for factor in side] for side in _fit_used(update, form, start, seed))
        found = Reduced(a, b, distance(update, a, b) / norm, norm)
        if best is None or found.error < best.error:
            best = found
        if best.error <= EXACT:
            break
    assert best is not None
    return best


def _fit_used(
    update: Update,
    form: Form,
    start: tuple[Factors, Factors] | None,
    seed: int,
) -> tuple[Factors, Factors]:
    """Return factors fitted to the rows and columns that are used, whatever they say about the others.

    The others are, round by round, what the last fit says of them, at first zero or what the start says: the distance
    never grows.

    Reference: Dempster, Laird & Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977.
    """
    shapes = form.out_shape, form.rank_shape, form.in_shape, form.separation_rank
    pair, norm = update.spread(form), update.norm
    is_padded = (form.out_width, form.in_width) != (form.out_features, form.in_features)
    if start is None or not is_padded:
        fit = fit_product(pair, *shapes, start=start, seed=seed, sweeps=SWEEPS, tolerance=TOLERANCE)
        start = fit.a, fit.b
    left_out = distance(update, *start)
    for _ in range(ROUNDS if is_padded else 0):
        if left_out <= EXACT * norm:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a few sweeps do not converge
            filled = _filled(update, pair, *start)
            fit = fit_product(filled, *shapes, start=start, sweeps=SWEEPS_A_ROUND, tolerance=0.0)
        before, left_out = left_out, distance(update, fit.a, fit.b)
        if left_out < before:
            start = fit.a, fit.b
        if before - left_out <= GAIN * before:
            break
    return start


def _filled(
    update: Update,
    pair: tuple[Tensor, Tensor],  # (M, k), (k, N), zero in rows and columns that are not used
    a: Factors,
    b: Factors,
) -> tuple[Tensor, Tensor]:
    """Return the pair of the update where it is used, and of B A elsewhere."""
    right, left = kron_sum(*a), kron_sum(*b)
    used_right, unused_left = torch.zeros_like(right), left.clone()
    rows, columns = len(update.left), update.right.shape[1]
    used_right[:, :columns] = right[:, :columns]
    unused_left[:rows] = 0
    # B A = its used columns of used rows, which the update replaces, of unused rows, and its unused columns.
    return torch.cat([pair[0], unused_left, left], dim=1), torch.cat([pair[1], used_right, right - used_right])


def drop_terms(
    pair: tuple[Tensor, Tensor],  # (m1 * ... * mD, r), (r, n1 * ... * nD)
    form: Form,
    seed: int = 0,
) -> tuple[Factors, Factors]:
    """Return the leading terms of both sides, of A and of B, each on its own.

    For two Kronecker factors this is `recondition` and leaving out the trailing terms, the best for each side. With C
    and E the sides less what is dropped, ||B A - C E|| <= ||B - C|| ||A||_2 + ||C||_2 ||A - E||.
    """
    left, right = pair
    a = nearest_kron_sum(right, form.rank_shape, form.in_shape, form.separation_rank, seed)
    return a, nearest_kron_sum(left, form.out_shape, form.rank_shape, form.separation_rank, seed)


def distance(update: Update, a: Factors, b: Factors) -> float:
    """Return ||update - B A||_F, of the rows and columns that are used."""
    left = kron_sum(*(factor.double() for factor in b))[: len(update.left)]
    right = kron_sum(*(factor.double() for factor in a))[:, : update.right.shape[1]]
    return distance_of_pairs((update.left, update.right), (left, right))


def fewest_terms(fit: Callable[[int], Reduced], error: float, most: int) -> Reduced:
    """Return the fit with the fewest terms whose error is at most `error`, or, if there is none, that with `most`.

    The number of terms doubles until the error is small enough, then bisects: with one term less, the fit was worse.
    """
    fails, terms = 0, 1
    found = fit(terms)
    while found.error > error and terms < most:
        fails, terms = terms, min(2 * terms, most)
        found = fit(terms)
    if found.error > error:
        return found
    while terms - fails > 1:
        middle = (fails + terms) // 2
        candidate = fit(middle)
        if candidate.error <= error:
            terms, found = middle, candidate
        else:
            fails = middle
    return found


def total_error(parts: list[Reduced]) -> float:
    """Return the relative error of all updates as one long vector."""
    lengths = torch.tensor([[part.error * part.norm, part.norm] for part in parts], dtype=torch.float64).norm(dim=0)
    return float(lengths[0] / lengths[1]) if lengths[1] > 0 else 0.0


def split_rank(rank: int) -> tuple[int, int]:
    """Return the two factors of a rank that are nearest to each other, the larger one first."""
    small = next(size for size in range(isqrt(rank), 0, -1) if rank % size == 0)
    return rank // small, small
