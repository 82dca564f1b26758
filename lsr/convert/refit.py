"""Fit an update B A with few Kronecker terms and measure the error: the mathematics of compress and prune.

The update is never formed: it is given as a pair of thin matrices, and so is every difference.
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

# Tighter than for an initialization, which is still trained: an error here stays.
SWEEPS = 200
TOLERANCE = 1e-4
# If the factors span more rows or columns than are used.
ROUNDS, SWEEPS_A_ROUND = 50, 5
GAIN = 1e-3  # the rounds end when the distance shrinks by less than this, relatively
EXACT = 1e-7  # relative distance that float32 does not resolve


@dataclass(frozen=True)
class Update:
    """The update to fit: `left @ right`, in the leading rows and columns of those that the factors span."""

    left: Tensor  # (m, k)
    right: Tensor  # (k, n)

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return float(singular_values_of_pair(self.left, self.right).norm())

    def spread(self, form: Form) -> tuple[Tensor, Tensor]:  # (m1 * ... * mD, k), (k, n1 * ... * nD)
        """Return both sides in float64, zero-padded to the widths that the factors span."""
        left, right = self.left.detach().double(), self.right.detach().double()
        return pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)


@dataclass(frozen=True)
class Reduced:
    """Factors in float32, as they are stored, and their error."""

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
    """Return the best B A of the given form found for an update.

    Returns the better of two fits. One starts from the sides of the truncated SVD, the other from the leading terms of
    `sides`, in whose basis the update is known to be separable, or of `left` and `right` if they have the rank of the
    form.

    Raises:
        ValueError: if the form does not fit the update, or the update is not finite.
    """
    norm = update.norm
    if norm == 0:  # nothing to fit: a fresh adapter has the same update
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
    """Return factors fitted to the used rows and columns only; in the padding, their product may be anything.

    Each round fills the padding of the target with the product of the last fit, at first with zeros or that of the
    initial factors, and fits again: the distance never grows.

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
    pair: tuple[Tensor, Tensor],  # (M, k), (k, N), zero in the padding
    a: Factors,
    b: Factors,
) -> tuple[Tensor, Tensor]:
    """Return a pair whose product is the update in the used rows and columns, and B A in the padding."""
    right, left = kron_sum(*a), kron_sum(*b)
    used_right, unused_left = torch.zeros_like(right), left.clone()
    rows, columns = len(update.left), update.right.shape[1]
    used_right[:, :columns] = right[:, :columns]
    unused_left[:rows] = 0
    # B A consists of its used part, which the update replaces, the unused rows of used columns, and the unused columns.
    return torch.cat([pair[0], unused_left, left], dim=1), torch.cat([pair[1], used_right, right - used_right])


def drop_terms(
    pair: tuple[Tensor, Tensor],  # (m1 * ... * mD, r), (r, n1 * ... * nD)
    form: Form,
    seed: int = 0,
) -> tuple[Factors, Factors]:
    """Return the leading terms of A and of B, each side on its own.

    For two Kronecker factors this is `recondition` without the trailing terms, the optimum for each side. With C and E
    the truncated B and A, ||B A - C E|| <= ||B - C|| ||A||_2 + ||C||_2 ||A - E||.
    """
    left, right = pair
    a = nearest_kron_sum(right, form.rank_shape, form.in_shape, form.separation_rank, seed)
    return a, nearest_kron_sum(left, form.out_shape, form.rank_shape, form.separation_rank, seed)


def distance(update: Update, a: Factors, b: Factors) -> float:
    """Return ||update - B A||_F over the used rows and columns."""
    left = kron_sum(*(factor.double() for factor in b))[: len(update.left)]
    right = kron_sum(*(factor.double() for factor in a))[:, : update.right.shape[1]]
    return distance_of_pairs((update.left, update.right), (left, right))


def fewest_terms(fit: Callable[[int], Reduced], error: float, most: int) -> Reduced:
    """Return the fit with the fewest terms whose error is at most `error`, or, if there is none, the one with `most`.

    The number of terms doubles until the error is small enough, then bisects: with one term fewer, it was too large.
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
    """Return the two factors of a rank that are closest to each other, the larger one first."""
    small = next(size for size in range(isqrt(rank), 0, -1) if rank % size == 0)
    return rank // small, small
