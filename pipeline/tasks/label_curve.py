"""Score tenants by the number of their labeled texts: which texts are labeled in each draw, and means with intervals.

A draw orders a tenant's texts. The first ones are labeled, and the texts after the largest number of labels are scored,
so that in one draw all numbers of labels have the same scored texts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.tasks import scores
from pipeline.tasks.cells import hash_of
from pipeline.tasks.held_out import COUNTS
from pipeline.tasks.scores import Interval
from pipeline.tasks.task import Numbers

DRAWS = 5


class Scored(NamedTuple):
    """A tenant's scores in each of DRAWS draws, (draws,), with the ends of their intervals over texts."""

    values: Numbers
    lows: Numbers
    highs: Numbers


class Mean(NamedTuple):
    """The mean of a score over tenants and draws, with its 95 % interval for other such tenants, texts and draws."""

    score: float
    low: float
    high: float
    tenants: int


def choose_counts(texts: int) -> list[int]:
    """Return the numbers of labels for a tenant with so many texts: at least half of the texts are scored."""
    return [count for count in COUNTS if 2 * count <= texts]


def order_texts(labels: Numbers, tenant: str, draw: int) -> Numbers:
    """Return the positions of a tenant's texts in the order of a draw; labels are (texts,).

    Every beginning has nearly the same share of each label as all texts: the texts of a label, in random order, are
    spread evenly, each at a random place in its own interval.
    """
    random = np.random.default_rng([draw, hash_of(tenant)])
    shuffled = random.permutation(len(labels))
    drawn = pd.Series(labels[shuffled])
    of_label = drawn.groupby(drawn)
    rank = of_label.cumcount().to_numpy()
    sizes = of_label.transform("size").to_numpy()
    places = (rank + random.random(len(labels))) / sizes
    in_order = np.argsort(places, kind="stable")
    return shuffled[in_order]


def average(metric: str, tenants: Sequence[Scored]) -> Mean:
    """Return the mean score over tenants and draws with its interval.

    Draws differ by tenant, so Student's interval of the tenants' means covers the errors of tenants, texts and draws.
    As for other means over tenants, it is at least as wide as the interval for these tenants with other texts and
    draws, and for a single tenant it is that one: see `scores.interval_of_mean`.
    """
    values = np.array([tenant.values.mean() for tenant in tenants])
    lows, highs = np.array([interval_of_tenant(tenant) for tenant in tenants]).T
    low, high = scores.interval_of_mean(values, lows, highs)
    least = -1.0 if metric in scores.SIGNED else 0.0
    return Mean(
        score=float(values.mean()),
        low=max(least, low),
        high=min(1.0, high),
        tenants=len(tenants),
    )


def interval_of_tenant(tenant: Scored) -> Interval:
    """Return the 95 % interval of a tenant's mean over draws, for other texts and draws.

    The half-widths over texts, averaged over draws, and over draws add as squares (Howe, 1974).
    """
    values = tenant.values
    mean = float(values.mean())
    over_draws = scores.half_width(values)
    below = (values - tenant.lows).mean()
    above = (tenant.highs - values).mean()
    low = mean - math.hypot(below, over_draws)
    high = mean + math.hypot(above, over_draws)
    return low, high
