"""95 % confidence intervals of scores, exact for scores that are counts, otherwise by bootstrap.

They show how much a score would vary with other examples of the same kind, not with another training run.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from pipeline.tasks import scores
from pipeline.tasks.scores import Numbers

CONFIDENCE = 0.95
NUMBERS_AT_ONCE = 4_000_000  # indices of resamples in memory, 32 MB
Interval = tuple[float, float]


def intervals(
    metrics: Sequence[str],
    predictions: Numbers,
    labels: Numbers,
    resamples: int,
    groups: Numbers | None = None,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the 95 % confidence interval (low, high) of each metric. The order of the examples does not matter.

    A share of independent examples or groups has the exact interval of Clopper and Pearson. So does f1, which is
    2j / (1 + j), where j is the share of hits among the examples that are, or are predicted as, class 1. All other
    intervals are percentiles of a bootstrap over examples, or over whole groups; all use the same resamples.

    Raises:
        UserError: if a prediction is not a finite number.

    Reference: Clopper & Pearson, "The use of confidence or fiducial limits", 1934; Efron & Tibshirani, "An Introduction
    to the Bootstrap", 1993, chapter 13.
    """
    scores.check_finite(predictions)
    found: dict[str, Interval] = {}
    for name in metrics:
        if groups is not None and name == "exact_match":
            passed = scores.are_right(labels, predictions, groups)
            found[name] = share(int(passed.sum()), len(passed))
        elif groups is None and name == "accuracy":
            found[name] = share(int((labels == predictions).sum()), len(labels))
        elif groups is None and name == "f1":
            hits, seen = (labels == 1) & (predictions == 1), (labels == 1) | (predictions == 1)
            low, high = share(int(hits.sum()), int(seen.sum()))
            found[name] = 2 * low / (1 + low), 2 * high / (1 + high)
        else:
            found[name] = _bootstrap(scores.EXAMPLES[name], predictions, labels, resamples, groups, seed)
    return found


def share(count: int, of: int) -> Interval:
    """Return the exact interval of a share; for a share of nothing, [0, 1]."""
    if of == 0:
        return 0.0, 1.0
    bounds = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)


def _bootstrap(
    metric: Callable[[Numbers, Numbers], float],
    predictions: Numbers,
    labels: Numbers,
    resamples: int,
    groups: Numbers | None,
    seed: int,
) -> Interval:
    order = np.lexsort((predictions, labels) if groups is None else (predictions, labels, groups))
    # The units to draw: single examples, or whole groups.
    units = None if groups is None else np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)

    def of_drawn(drawn: Numbers) -> float:
        rows = order[drawn] if units is None else np.concatenate([units[number] for number in drawn])
        return float(metric(labels[rows], predictions[rows]))

    numbers = np.arange(len(order) if units is None else len(units))
    if len(numbers) == 1:  # every resample equals the sample
        return (whole := of_drawn(numbers)), whole
    bounds = stats.bootstrap(
        (numbers,),
        of_drawn,
        n_resamples=resamples,
        batch=max(1, NUMBERS_AT_ONCE // len(numbers)),
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)
