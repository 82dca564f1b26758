"""What the finished cells say: means over seeds with 95 % intervals, and how fast the methods learn."""

from collections.abc import Iterator, Sequence
from math import isnan, nan
from statistics import fmean
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.init import plan
from benchmarks.init.experiment import BASELINE, RATES, REFERENCES, SETTINGS, Setting
from benchmarks.init.measure import Line
from benchmarks.init.plan import Found

SHARE = 0.95  # of the validation score that the best LSR method ends at: what all methods are timed to


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval. One seed has no interval, none has no mean either: NaN."""

    mean: float = nan
    low: float = nan
    high: float = nan

    def words(self, form: str) -> str:
        """Return "mean (low to high)", each number in the given form."""
        mean, low, high = (f"{value:{form}}" for value in self)
        return "–" if isnan(self.mean) else mean if isnan(self.low) else f"{mean} ({low} to {high})"


class Row(NamedTuple):
    """A method in a setting, at its tuned learning rate."""

    setting: str
    method: str
    trained: int  # parameters of the adapter
    stored: int
    rate: float
    at_edge: bool  # of the grid: another rate might do better
    seeds: int
    validation: float  # score of the trained models, mean over the seeds
    test: Estimate  # score of the trained models
    gain: Estimate  # test score minus that of the baseline with the same seed
    steps: int | None  # until the mean validation score reaches SHARE of the best LSR method's
    seconds: float  # a cell, mean

    def flat(self) -> dict[str, Any]:
        """Return the fields by name, an estimate as three: test, test_low, test_high."""
        fields: dict[str, Any] = {}
        for name, value in self._asdict().items():
            if isinstance(value, Estimate):
                fields |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                fields[name] = value
        return {name: None if value != value else value for name, value in fields.items()}  # NaN is no JSON


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and mean ± t std / sqrt(n), t the 0.975 quantile of Student's t with n - 1 degrees of freedom."""
    if len(values) < 2:
        return Estimate(*values)
    mean, half = fmean(values), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def mean_curve(lines: Sequence[Line]) -> list[tuple[int, float]]:
    """Return (optimizer step, validation score), the mean over the lines."""
    curves = [line["curve"] for line in lines]
    return [(points[0][0], fmean(score for _, score in points)) for points in zip(*curves, strict=True)]


def steps_to(curve: Sequence[tuple[int, float]], score: float) -> int | None:
    """Return the first step at which the curve reaches the score, None if it never does."""
    return next((step for step, reached in curve if reached >= score), None)


def rows(found: Found) -> list[Row]:
    """Return a row for each method whose learning rate is tuned, by setting, with the seeds that are there."""
    return [row for setting in SETTINGS for row in _rows_of(setting, found)]


def _rows_of(setting: Setting, found: Found) -> Iterator[Row]:
    lines = {method: _by_seed(setting, method, found) for method in (*setting.methods, *setting.removed)}
    curves = {method: mean_curve(list(its_lines.values())) for method, its_lines in lines.items() if its_lines}
    best = max((curve[-1][1] for method, curve in curves.items() if method not in REFERENCES), default=nan)
    for method, curve in curves.items():
        its_lines, baseline = lines[method], lines[BASELINE]
        shared = [seed for seed in its_lines if seed in baseline and method != BASELINE]
        first = next(iter(its_lines.values()))
        yield Row(
            setting=setting.name,
            method=method,
            trained=first["trained"],
            stored=first["stored"],
            rate=first["rate"],
            at_edge=first["rate"] in (min(RATES), max(RATES)),
            seeds=len(its_lines),
            validation=curve[-1][1],
            test=estimate([line["test"] for line in its_lines.values()]),
            gain=estimate([its_lines[seed]["test"] - baseline[seed]["test"] for seed in shared]),
            steps=steps_to(curve, SHARE * best),
            seconds=fmean(line["seconds"] for line in its_lines.values()),
        )


def _by_seed(setting: Setting, method: str, found: Found) -> dict[int, Line]:
    """The finished cells at the tuned rate."""
    return {cell.seed: found[key] for cell in plan.seeds(setting, method, found) if (key := cell.key()) in found}
