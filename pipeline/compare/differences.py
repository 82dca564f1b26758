"""The difference of one method from another, in percentage points: its errors, interval and test, and the verdicts.

A difference would have been another one with other seeds, with other test examples and, if it is about new tasks, on
other tasks. These errors are independent, and each has a variance of its own:

- Seeds. One seed trains one model for a whole task, which answers all tenants of the task, so it is drawn once for all
of them: the unit is the mean of the differences over tenants with one seed. Differences are paired by seed. - Test
examples, which are drawn for each tenant, and on which all seeds are scored. Their error is the covariance of the
differences with two seeds over a bootstrap of the examples. The effect of examples on one seed but not on another is
part of the spread over seeds. - Tasks of an average, or tenants of a task, if these are drawn too. The spread of their
differences contains all errors within them: those of their examples and, where each has its own training runs, of
seeds.

Two seeds, or four tasks, say little about the variance of others, so each error has Student's quantile with its own
degrees of freedom: one less than there are seeds, tasks or tenants. Half-widths of independent errors add as their
squares (Howe, "Approximate confidence limits on the mean of X + Y where X and Y are two tabled independent random
variables", 1974). Over the tasks of an average, whose training runs are independent, the variances of seeds add, with
Satterthwaite's degrees of freedom.

Nothing is known better if more is drawn. With the seeds fixed, the error of the examples is known well; a few seeds
whose differences agree by chance do not make it smaller. With the tasks fixed, the error within them is known; a few
tasks whose differences agree by chance do not make it smaller either. So an interval is never narrower, and a p-value
never smaller, than with less drawn. This is no more than the truth allows: if tasks do not differ, both intervals are
about the same number. Where tasks differ, Student's interval of their differences covers the mean of new ones although
their errors are unequal (Ibragimov and Müller, "t-statistic based correlation and heterogeneity robust inference",
2010).

In simulations with a known truth (`tests/pipeline/test_statistics.py`), 95 % intervals on one task cover it in
95 to 99 % of cases, for 1 to 50 tenants: in 95 to 97 % with five seeds, and most often with two seeds where the error
is that of examples, as one degree of freedom is a wide quantile. On an average of tasks one of which has nearly all of
the error, they cover 93 to 95 % with three seeds or more, and 90 % with two. On new tasks they cover 95 % or more.

Differences from the baseline on every task and average, and the differences of hypotheses, are reported twice: on these
tasks, for other seeds and test examples, and on new tasks like them. Only hypotheses, which were written down
before, are tested, and their p-values corrected for their number. An interval of another difference is explored: with
50 methods, two or three are "ahead" or "behind" by chance.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from pipeline.arena.preset import Hypothesis

# Verdicts on a hypothesis, by the corrected tests.
BETTER = "better"
EQUIVALENT = "equivalent"
WORSE = "worse"
UNDECIDED = "undecided"
# Verdicts on any other difference, by its interval.
AHEAD = "ahead"
CLOSE = "close"
BEHIND = "behind"
CONFIDENCE = 0.95
TWO_ONE_SIDED = 0.90  # confidence of an interval that lies within the margin if both tests at 5 % pass
SCOPES = ("these", "new")  # the tasks for which a difference is estimated: these, or new ones like them
MIN_P = 1e-100  # smaller p-values are 0
Values = NDArray[Any]
Verdict = dict[str, Any]  # the ends of an interval, and a word


class Scores(NamedTuple):
    """The score of a training run, in percent."""

    whole: float  # score on all test examples
    resampled: Values  # score on each resample of them, (resamples,); without labels always the score on all


BySeed = Mapping[int, Scores]
Seeds = Sequence[int]
Part = tuple[BySeed, BySeed]  # scores of a method and of its rival, on a whole task or a tenant


class Error(NamedTuple):
    """A variance of a difference, in squared percentage points, with its degrees of freedom."""

    variance: float
    freedom: float = math.inf  # degrees of freedom of its estimate


@dataclass(frozen=True)
class Difference:
    """A difference over all seeds in common, with its errors; unknown values are NaN.

    With a single seed, errors are unknown.
    """

    mean: float = math.nan  # not a number without a seed in common
    these: tuple[Error, ...] = ()  # independent errors with the tasks fixed: of seeds, and of examples
    alone: tuple[Error, ...] = ()  # errors with seeds fixed too, due to examples alone
    drawn: tuple[Error, ...] = ()  # errors with tasks or tenants drawn too; unknown for a single one
    error_seeds: float = math.nan  # standard error with tasks and examples fixed
    error_examples: float = math.nan  # standard error with tasks and seeds fixed; unknown without labels

    def half(self, confidence: float, scope: str = "these") -> float:
        """Return the half-width of the interval on one of SCOPES."""
        possible = self._possible(scope)
        return max(_half(errors, confidence) for errors in possible)

    def interval(self, confidence: float, scope: str = "these") -> tuple[float, float]:
        """Return the interval on one of SCOPES."""
        half = self.half(confidence, scope)
        return self.mean - half, self.mean + half

    def p(self, scope: str = "these") -> float:
        """Return the two-sided p-value for a difference of 0: the interval with confidence 1 - p ends at 0."""
        possible = self._possible(scope)
        return max(_p(errors, self.mean) for errors in possible)

    def _possible(self, scope: str) -> list[tuple[Error, ...]]:
        """Return the errors of each interval, the widest of which counts."""
        possible = [self.alone, self.these]
        if scope == "new":
            possible.append(self.drawn)
        return possible if possible[-1] else [()]


def _half(errors: Sequence[Error], confidence: float) -> float:
    """Return the half-width of an interval for a sum of independent errors; NaN if there are none."""
    if not errors:
        return math.nan
    halves = []
    for variance, freedom in errors:
        quantile = stats.t.ppf((1 + confidence) / 2, freedom)
        halves.append(quantile * math.sqrt(variance))
    return math.hypot(*halves)


def _p(errors: Sequence[Error], mean: float) -> float:
    """Return the p-value at which the half-width equals the mean; NaN if there are no errors."""
    if not errors or math.isnan(mean):
        return math.nan

    def beyond(log_p: float) -> float:
        half_p = math.exp(log_p) / 2
        square = 0.0
        for variance, freedom in errors:
            quantile = stats.t.isf(half_p, freedom)
            square += quantile**2 * variance
        return square - mean**2

    if mean == 0:
        return 1.0
    least = math.log(MIN_P)
    if beyond(least) < 0:
        return 0.0
    return math.exp(optimize.brentq(beyond, least, 0.0))


def on_task(parts: Sequence[Part]) -> Difference:
    """Return the difference of a method from its rival on a task: the mean over its tenants, or of the whole task."""
    seeds = _seeds(parts)
    if not seeds:
        return Difference()
    differences = np.array([_differences(part, seeds) for part in parts])  # (parts, seeds)
    average = float(differences.mean())
    if len(seeds) < 2:
        return Difference(average)
    by_part = np.array([_of_examples(part, seeds) for part in parts])  # (parts, 2)
    totals = by_part.sum(axis=0)
    of_examples, in_common = totals / len(parts) ** 2
    by_seed = differences.mean(axis=0)
    of_seeds = Error(_of_mean(by_seed), len(seeds) - 1)
    return Difference(
        mean=average,
        these=(of_seeds, Error(max(0.0, in_common))),
        alone=(Error(of_examples),),
        drawn=_with_tenants(differences, of_seeds),
        error_seeds=math.sqrt(of_seeds.variance),
        error_examples=math.sqrt(of_examples) or math.nan,
    )


def _seeds(parts: Sequence[Part]) -> list[int]:
    """Return the seeds that both methods have on all parts; empty if there are no parts."""
    if not parts:
        return []
    known = map(set, chain.from_iterable(parts))
    return sorted(set[int].intersection(*known))


def _differences(part: Part, seeds: Seeds) -> list[float]:
    """Return the difference on a part with each seed."""
    mine, theirs = part
    return [mine[seed].whole - theirs[seed].whole for seed in seeds]


def _of_examples(part: Part, seeds: Seeds) -> tuple[float, float]:
    """Return, over draws of the examples, the variance of the mean over seeds and the covariance of two seeds."""
    mine, theirs = part
    differences = [mine[seed].resampled - theirs[seed].resampled for seed in seeds]  # differences on each resample
    if not np.ptp(differences, axis=1).any():  # there are no labels, or no difference
        return 0.0, 0.0
    covariances = np.cov(differences)
    apart = ~np.eye(len(seeds), dtype=bool)
    between_seeds = covariances[apart]
    variance = max(0.0, float(covariances.mean()))  # rounding may lead below 0
    return variance, float(between_seeds.mean())


def _with_tenants(differences: Values, of_seeds: Error) -> tuple[Error, ...]:
    """Return the errors of the mean of differences (parts, seeds) if tenants are drawn, too; empty for a single tenant.

    The spread of tenants contains the effect of seeds on each tenant; the common effect of a seed is added as the
    remaining error of seeds.
    """
    tenants, seeds = differences.shape
    if tenants < 2:
        return ()
    by_seed = differences.mean(axis=0)
    by_tenant = differences.mean(axis=1, keepdims=True)
    rest = differences - by_seed - by_tenant + differences.mean()
    freedom = (tenants - 1) * (seeds - 1)
    alone = (rest**2).sum() / freedom / differences.size
    common = max(0.0, of_seeds.variance - float(alone))
    of_tenants = Error(_of_mean(by_tenant[:, 0]), tenants - 1)
    return of_tenants, Error(common, of_seeds.freedom)


def mean(differences: Sequence[Difference]) -> Difference:
    """Return the mean difference over tasks that share no texts; a single difference is returned unchanged.

    It is unknown, with its errors, if there are no differences or one of them is unknown.
    """
    if len(differences) < 2:
        return differences[0] if differences else Difference()
    means = np.array([difference.mean for difference in differences])
    average = float(means.mean())
    count = len(differences)
    if not all(difference.these for difference in differences):
        return Difference(average)
    these = [difference.these for difference in differences]
    of_seeds, of_examples = map(_mean_of, zip(*these, strict=True))
    alone = chain.from_iterable(difference.alone for difference in differences)
    seeds = [difference.error_seeds for difference in differences]
    examples = [difference.error_examples for difference in differences]
    return Difference(
        mean=average,
        these=(of_seeds, of_examples),
        alone=(_mean_of([*alone]),),
        drawn=(Error(_of_mean(means), count - 1),),
        error_seeds=math.hypot(*seeds) / count,
        error_examples=math.hypot(*examples) / count,
    )


def _of_mean(values: Values) -> float:
    """Return the variance of the mean of independent values."""
    return float(values.var(ddof=1)) / len(values)


def _mean_of(errors: Sequence[Error]) -> Error:
    """Return the error of the mean of values with independent errors.

    Reference: Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    total = 0.0
    below = 0.0
    for error in errors:
        variance = error.variance / len(errors) ** 2
        total += variance
        below += variance**2 / error.freedom
    freedom = total**2 / below if below else math.inf
    return Error(total, freedom)


ByMethod = Mapping[str, BySeed]
ByPart = Mapping[str, ByMethod]  # scores of a task's parts by method
Places = Mapping[str, tuple[str, ...]]  # the tasks of each: one, or all of an average


@dataclass(frozen=True)
class Comparator:
    """Computes differences and verdicts from all scores of a comparison."""

    scores: Mapping[str, ByPart]  # scores by task; a part is a tenant, or the whole task
    places: Places
    margin: float  # percentage points within which methods are equivalent

    def versus(
        self,
        baseline: str,
        place: str,
        methods: Iterable[str],
    ) -> dict[str, Verdict]:
        """Return the difference of each method on a task or average, with its verdicts."""
        differences = {}
        for name in methods:
            difference = Difference()
            if name != baseline:
                difference = self._difference(place, name, baseline)
            verdicts = [self._judge_exploratory(difference, scope) for scope in SCOPES]
            differences[name] = _summarize(difference, verdicts)
        return differences

    def outcomes(self, hypotheses: Sequence[Hypothesis]) -> list[Verdict]:
        """Return each hypothesis with its difference, its verdicts, and the scopes in which it held.

        A method that is better by less than the margin is equivalent, too. Without a method's score on a task, or a
        common seed, a hypothesis is untested: its values are None.
        """
        differences = []
        for hypothesis in hypotheses:
            differences.append(self._difference(hypothesis.on, hypothesis.method, hypothesis.versus))
        by_scope = [self._test_hypotheses(differences, scope) for scope in SCOPES]
        by_difference = zip(*by_scope, strict=True)
        outcomes = []
        for hypothesis, difference, verdicts in zip(hypotheses, differences, by_difference, strict=True):
            held = []
            for scope, verdict in zip(SCOPES, verdicts, strict=True):
                holds = verdict["word"] == BETTER
                if hypothesis.expected == EQUIVALENT:
                    holds = self._is_within(difference, scope)
                if holds:
                    held.append(scope)
            outcome = {
                **hypothesis.model_dump(),
                "held": held,
                **_summarize(difference, verdicts),
            }
            outcomes.append(outcome)
        return outcomes

    def _difference(self, place: str, method: str, versus: str) -> Difference:
        """Return the difference on a task or average."""
        differences = []
        for task in self.places.get(place, ()):
            parts = []
            for scores in self.scores[task].values():
                part = scores.get(method, {}), scores.get(versus, {})
                parts.append(part)
            differences.append(on_task(parts))
        return mean(differences)

    def _judge_exploratory(self, difference: Difference, scope: str) -> Verdict:
        low, high = difference.interval(CONFIDENCE, scope)
        word = None
        if low > 0:
            word = AHEAD
        elif high < 0:
            word = BEHIND
        elif self._is_within(difference, scope):
            word = CLOSE
        return {**_replace_nan(low=low, high=high), "word": word}

    def _test_hypotheses(self, differences: Sequence[Difference], scope: str) -> Iterator[Verdict]:
        """Yield better or worse if the corrected test is significant, otherwise equivalent if within the margin."""
        corrected = holm([difference.p(scope) for difference in differences])
        for difference, p in zip(differences, corrected, strict=True):
            low, high = difference.interval(CONFIDENCE, scope)
            word = None if math.isnan(high) else UNDECIDED
            if p < 1 - CONFIDENCE:
                word = BETTER if difference.mean > 0 else WORSE
            elif self._is_within(difference, scope):
                word = EQUIVALENT
            yield {**_replace_nan(low=low, high=high, p_holm=p), "word": word}

    def _is_within(self, difference: Difference, scope: str) -> bool:
        """Whether two one-sided tests at 5 % each find the difference above -margin and below margin.

        Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
        """
        low, high = difference.interval(TWO_ONE_SIDED, scope)
        return -self.margin <= low and high <= self.margin


def _replace_nan(**values: float) -> dict[str, float | None]:
    known = {}
    for name, value in values.items():
        known[name] = None if math.isnan(value) else value
    return known


def _summarize(difference: Difference, verdicts: Iterable[Verdict]) -> Verdict:
    """Return a difference, its standard errors in percentage points, and its verdicts; unknown values are None."""
    known = _replace_nan(
        difference=difference.mean,
        error_seeds=difference.error_seeds,
        error_examples=difference.error_examples,
    )
    return known | dict(zip(SCOPES, verdicts, strict=True))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order; NaN stays NaN and does not count.

    scipy corrects only for false discoveries, and statsmodels would be a large package for three lines.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected = list(values)
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    known.sort(key=values.__getitem__)
    least = 0.0
    for rank, place in enumerate(known):
        factor = len(known) - rank
        least = max(least, factor * values[place])
        corrected[place] = min(least, 1.0)
    return corrected
