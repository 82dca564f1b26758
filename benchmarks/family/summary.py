"""A summary of the finished cells: means over seeds with 95 % intervals, and paired differences to LoRA."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from statistics import fmean
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.family import plan
from benchmarks.family.experiment import PROTOCOLS, Run
from benchmarks.family.methods import METHODS
from benchmarks.family.plan import Found

PEERS = ("LoRA r=1", "LoRA r=8")
BITS = {"float32": 32, "sign": 1}  # per entry of a frozen frame, by its dtype


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval and standard error; NaN if there are too few seeds."""

    mean: float = nan
    low: float = nan
    high: float = nan
    error: float = nan

    def words(self, form: str) -> str:
        """Return "mean (low to high)", each number in the given form."""
        mean, low, high = (f"{value:{form}}" for value in self[:3])
        return "–" if isnan(self.mean) else mean if isnan(self.low) else f"{mean} ({low} to {high})"


class Row(NamedTuple):
    """A run with its tuned values."""

    protocol: str
    data: str
    method: str
    layers: str  # of the model, by index
    trained: int  # parameters of the adapter
    stored: int  # parameters in its file, without frames that many adapters share
    pooled: int  # parameters of these frames
    rate: float
    at_edge: bool  # of the rates tried: one beyond may be better
    validation: float  # score, mean over the seeds
    test: Estimate
    over_first: Estimate  # test score minus that of the first of PEERS with the same seed
    over_second: Estimate  # and of the second
    tests: Mapping[int, float]  # test score by seed
    seconds: float  # per cell, mean

    @property
    def group(self) -> str:
        """The group of the method, a key of GROUPS."""
        return METHODS[self.method].group

    @property
    def size(self) -> int:
        """The bytes of the stored parameters: four each, but a bit for a sign."""
        bits = BITS[str(METHODS[self.method].overrides.get("lsr.frames_dtype", "float32"))]
        return 4 * self.trained + (self.stored - self.trained) * bits // 8

    def flat(self) -> dict[str, Any]:
        """Return the fields and the size by name, an estimate as three: test, test_low, test_high."""
        fields: dict[str, Any] = {"size": self.size}
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
    mean, error = fmean(values), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half, error)


def difference(tests: Mapping[int, float], others: Mapping[int, float]) -> Estimate:
    """Return the mean difference of scores, paired by the seeds in common."""
    return estimate([tests[seed] - others[seed] for seed in tests if seed in others])


def rows(found: Found) -> list[Row]:
    """Return a row for each run with as many seeds as any in its protocol; others are not finished."""
    listed = []
    for protocol in PROTOCOLS:
        tests = {run: _tests(run, found) for run in plan.runs(protocol)}
        most = max(map(len, tests.values()))
        listed += [_row(run, tests, found) for run in tests if most and len(tests[run]) == most]
    return listed


def _row(run: Run, tests: Mapping[Run, Mapping[int, float]], found: Found) -> Row:
    cells = [cell for cell in plan.seeds(run, found) if cell.key() in found]
    lines = [found[cell.key()] for cell in cells]
    first, second = (
        Estimate() if run.method == peer else difference(tests[run], tests.get(run._replace(method=peer), {}))
        for peer in PEERS
    )
    return Row(
        protocol=run.protocol,
        data=run.data,
        method=run.method,
        layers=cells[0].layers if cells[0].layers == "all" else ", ".join(map(str, cells[0].layers)),
        trained=lines[0]["trained"],
        stored=lines[0]["stored"],
        pooled=lines[0]["pooled"],
        rate=cells[0].rate,
        at_edge=plan.is_at_edge(cells[0]),
        validation=fmean(line["validation"] for line in lines),
        test=estimate(list(tests[run].values())),
        over_first=first,
        over_second=second,
        tests=tests[run],
        seconds=fmean(line["seconds"] for line in lines),
    )


def _tests(run: Run, found: Found) -> dict[int, float]:
    """Return the test scores of a run's cells with tuned values, by seed."""
    return {cell.seed: found[key]["test"] for cell in plan.seeds(run, found) if (key := cell.key()) in found}
