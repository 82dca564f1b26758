"""Times of calls that take turns: what slows one round down slows all calls in it, and ratios stay."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter

import torch

Times = dict[str, list[float]]  # seconds, one a round, by method


def take_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, advance: Callable[[], None], *, twice: bool = False
) -> Times:
    """Return the seconds of each call in each round, after one round that does not count.

    With `twice` the second of two calls in a row is timed: in a model a layer runs after others like it, whose code is
    in the caches, and not after layers of all other methods.
    """
    times: Times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if twice:
                call()
            begin = perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(perf_counter() - begin)
        advance()
    return times


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within the rounds."""
    return median(time / other for time, other in zip(times, others, strict=True))


def overhead(times: Times, method: str, base: str, peer: str) -> float:
    """Return what a method adds to the base, over what the peer adds: medians of differences in a round."""
    own, others = (
        median(time - other for time, other in zip(times[name], times[base], strict=True)) for name in (method, peer)
    )
    return own / others
