"""Tenants that are held out for test: whole tenants, of which training reads no text."""

from collections.abc import Collection, Mapping, Sequence

from lsr_onnx.errors import some_of
from pipeline.core.errors import nearest
from pipeline.tasks.cells import place_of
from pipeline.tasks.task import interval_of

WHERE = "held_out_tenants"  # the key of an entry
MIN_TRAINED = 2  # tenants that stay in training, since a single one has no group to learn from
COUNTS = (0, 5, 10, 20, 60)  # labeled texts with which they are scored


def choose_tenants(tenants: Collection[str], wanted: float | Sequence[str]) -> Sequence[str]:
    """Return the tenants to hold out: those with the wanted names, or a share by the hashes of all names.

    A share is rounded to whole tenants.

    Raises:
        ValueError: if there is no tenant of a name, no tenant would be held out, or fewer than two would stay.
    """
    if not isinstance(wanted, float):
        given = some_of(wanted)
        chosen = wanted
    else:
        given = f"{wanted:g}"
        count = round(wanted * len(tenants))
        by_hash = sorted(tenants, key=place_of)
        chosen = by_hash[:count]
    for name in chosen:
        if name not in tenants:
            known = some_of(sorted(tenants))
            raise ValueError(f"{WHERE}: no tenant {name!r} in train: {known}{nearest(name, tenants)}")
    total = len(tenants)
    held_out = len(chosen)
    left = total - held_out
    if held_out < 1 or left < MIN_TRAINED:
        outcome = f"{given} of {total} tenants holds out {held_out} and leaves {left}"
        needed = f"at least 1 held out and {MIN_TRAINED} left for training"
        raise ValueError(f"{WHERE}: {outcome}; needed: {needed}")
    return chosen


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
