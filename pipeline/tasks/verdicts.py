"""State in words whether a model is better than a baseline: for the run summary and the model card."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pipeline.tasks.description import Description, Line
from pipeline.tasks.task import interval_of

REGRESSION = "a regression on the frozen model"
ROUNDING = 1e-9  # relative to the width of the interval; below it a difference is 0


class Difference(NamedTuple):
    """A difference from a baseline, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        # The mean of differences that add up to 0 is not exactly 0, because of rounding.
        mean = self.mean if abs(self.mean) > ROUNDING * (self.high - self.low) else 0.0
        ends = f"95 %: {self.low:.4g} to {self.high:.4g}"
        if self.is_constant:
            ends = "no interval: every resample scores the same"
        return f"{mean:.4g} ({ends})"

    @property
    def is_constant(self) -> bool:
        """Whether every resample has this difference, which is not 0: there are too few examples for a verdict."""
        return self.low == self.high != 0

    def describe(self, baseline: str, score: str = "") -> str:
        """Return whether the difference is above 0, below 0 or neither, after the name of the baseline."""
        comma = "," if score else ""
        if self.is_constant:
            return f"next to {baseline}{score}: difference {self}"
        if self.low > 0:
            return f"better than {baseline}{score}{comma} by {self}"
        if self.high < 0:
            worse = Difference(-self.mean, -self.high, -self.low)
            return f"worse than {baseline}{score}{comma} by {worse}"
        return f"not better than {baseline}{score}: difference {self}"


def verdicts(metric: str, metrics: Mapping[str, float], description: Description) -> Iterator[Line]:
    """Yield a name and a line for each baseline with which the stage evaluate has compared a metric."""
    constant = _difference(f"{metric}_over_baseline", metrics)
    if constant:
        yield description.baseline_word, constant.describe(description.baseline_name)
    regression = _difference(f"{metric}_over_regression", metrics)
    if regression:
        score = metrics[f"{metric}_regression"]
        yield "regression", regression.describe(REGRESSION, f", {score:.4g}")


def _difference(key: str, metrics: Mapping[str, float]) -> Difference | None:
    """Return a difference among the metrics; None if there is none."""
    if key not in metrics:
        return None
    return Difference(metrics[key], *interval_of(key, metrics))
