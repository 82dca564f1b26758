"""How the tables and the page write numbers."""

from collections.abc import Mapping
from statistics import fmean

from pipeline.compare.estimates import Estimate

NONE = "–"


def scored(value: Estimate) -> str:
    """Return the mean and half the width of the 95 % interval, as in "81.23 ± 0.45"."""
    if value.mean is None:
        return NONE
    return f"{value.mean:.2f}" if value.high is None else f"{value.mean:.2f} ± {value.high - value.mean:.2f}"


def ahead(value: Estimate) -> str:
    """Return a difference with its sign and interval."""
    if value.mean is None:
        return NONE
    return f"{value.mean:+.2f}" if value.low is None else f"{value.mean:+.2f} ({value.low:+.2f} to {value.high:+.2f})"


def counted(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}"


def several(count: int, what: str) -> str:
    """Return a number of things, as in "1 task" and "5 tasks"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def probable(value: float | None) -> str:
    """Return a p-value."""
    return NONE if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def mean(scores: Mapping[int, float]) -> str:
    """Return the mean of scores by seed."""
    return f"{fmean(scores.values()):.2f}" if scores else NONE
