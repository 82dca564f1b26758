"""How many Kronecker terms each layer gets when a budget of stored numbers is shared."""

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from math import inf

from torch import Tensor

from lsr.algebra.separable import Shape, separation_errors

# Rounding in float64 is no gain, and makes no difference between two rates.
LEAST_GAIN = 1e-12
RATE_DIGITS = 9


def captured_shares(
    rows: Tensor,  # (r_1 * ... * r_D, n_1 * ... * n_D), float64
    rank_shape: Shape,
    in_shape: Shape,
    most: int,
) -> list[float]:
    """Return `1 - error^2` of the nearest Kronecker sum with 1, ..., `most` terms: the captured share of ||rows||_F^2.

    For D = 2 it never decreases; for D > 2, where the nearest sum is a local optimum, it may by a little.
    """
    return [1 - error**2 for error in separation_errors(rows, rank_shape, in_shape, range(1, most + 1))]


def spread_terms(
    gains: Mapping[str, Sequence[float]],  # by layer: the share captured with 1, 2, ... terms
    costs: Mapping[str, int],  # by layer: the numbers that one term stores
    budget: int,
) -> dict[str, int]:
    """Return how many terms each layer gets, one at least, so that the sum of the captured shares is large.

    Greedy: the step with the most gain per stored number comes first. A step is the best chord of a layer's curve, an
    edge of its upper concave envelope; where that does not fit into the budget any more, the best that does. A tie goes
    to the layer with fewer terms, then to the first. A larger budget never captures less. The sum is the largest
    possible if the curves are concave and the costs equal; otherwise less than the gain of one step is missing, the
    first that did not fit.

    Raises:
        ValueError: if the budget cannot hold one term in each layer.

    Reference: Fox, "Discrete optimization via marginal analysis", Management Science 13:210, 1966, for the greedy
    rule; AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) and EVA (Paischer et al. 2024, arXiv 2410.07170) for unequal
    ranks under one budget.
    """
    least = sum(costs[name] for name in gains)
    if budget < least:
        raise ValueError(f"a budget of {budget} cannot hold one term in each of {len(gains)} layers: at least {least}")
    names = list(gains)
    terms = dict.fromkeys(names, 1)
    left = budget - least
    # A heap of (-gain per number, terms before, layer, terms after). It starts with the first term of each layer, which
    # is paid; what does not fit any more gives way to the best of the same layer that does.
    steps = [(-inf, 0, position, 1) for position in range(len(names))]
    while steps:
        _, _, position, target = heappop(steps)
        name = names[position]
        price = (target - terms[name]) * costs[name]
        if price <= left:
            terms[name] = target
            left -= price
        step = _best_step(gains[name], terms[name], costs[name], left)
        if step is not None:
            rate, target = step
            heappush(steps, (-rate, terms[name], position, target))
    return terms


def _best_step(curve: Sequence[float], terms: int, cost: int, left: int) -> tuple[float, int] | None:
    """Return the highest gain per stored number that `left` numbers can buy, and the (fewest) terms after it."""
    best = None
    for target in range(terms + 1, min(len(curve), terms + left // cost) + 1):
        gain = curve[target - 1] - curve[terms - 1]
        rate = float(f"{gain / ((target - terms) * cost):.{RATE_DIGITS}g}")
        if gain > LEAST_GAIN and (best is None or rate > best[0]):
            best = rate, target
    return best
