"""Times of calls that take turns: what slows down a round slows down all its calls, so ratios are stable."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter

import torch

Times = dict[str, list[float]]  # seconds, one per round, by method


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Return the seconds of each call in each round, after one round that is not timed."""
    times: Times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(perf_counter() - begin)
    return times


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within rounds."""
    return median(time / other for time, other in zip(times, others, strict=True))
