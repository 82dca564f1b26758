"""Tenants that are held out for test: whole tenants, of which training reads no text."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.tasks.cells import place_of
from pipeline.tasks.task import interval_of

MIN_TRAINED = 2  # tenants that stay in training, since a single one has no group to learn from
COUNTS = (0, 5, 10, 20, 60)  # labeled texts with which they are scored


def choose_tenants(names: Iterable[str], share: float) -> Sequence[str]:
    """Choose a share of tenants, rounded to whole ones, by the hashes of their names.

    Raises:
        ValueError: if no tenant would be held out, or fewer than two would stay.
    """
    by_hash = sorted(names, key=place_of)
    total = len(by_hash)
    count = round(share * total)
    left = total - count
    if count < 1 or left < MIN_TRAINED:
        where = "held_out_tenants"
        given = f"{share:g} of {total} tenants holds out {count} and leaves {left}"
        needed = f"at least 1 held out and {MIN_TRAINED} left for training"
        raise ValueError(f"{where}: {given}; needed: {needed}")
    return by_hash[:count]


def name_metric(count: int) -> str:
    """Return the name of the metric for this number of labeled texts."""
    return f"held_out_{count}_labels"


def name_regression_metric(count: int) -> str:
    """Return the name of the metric of the tenants' own regressions for this number of labeled texts."""
    return f"{name_metric(count)}_regression"


def describe_scores(metrics: Mapping[str, float]) -> str:
    """Return the scores of held-out tenants with the least and the most labels, next to own regressions."""
    counts = [count for count in COUNTS if name_metric(count) in metrics]
    fewest = counts[0]
    most = counts[-1]
    first_and_last = dict.fromkeys((fewest, most))  # a single one if they are equal
    parts = list[str]()
    for count in first_and_last:
        name = name_metric(count)
        score = metrics[name]
        low, high = interval_of(name, metrics)
        own = ""
        if count:
            regression = metrics[name_regression_metric(count)]
            own = f"; own regression {regression:.3g}"
        ends = f"{low:.3g} to {high:.3g}"
        part = f"{score:.3g} ({ends}{own}) with {count} labels"
        parts.append(part)
    return ", ".join(parts)
