"""The lead of one method over another, in percentage points: both kinds of error, interval and test; and the verdicts.

On a task, a lead is paired by seed, and other seeds or other test examples would have given another one. The bootstrap
draws both at once. All seeds are scored on the same examples; for such crossed draws its variance is a little too large
(Owen, "The pigeonhole bootstrap", 2007). On an average of new tasks, it also draws the tasks, so the interval is about
tasks like these. The spread of their leads already contains the errors within tasks, which are taken out of it, because
they would count twice (Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8).

Five seeds and a few tasks are a small sample. Therefore one less than there are is drawn, which makes variances
unbiased, and intervals are Student's t around the bootstrap's standard error: its quantiles would be too narrow, above
all far from the middle, where Holm's correction looks. In simulations, the 90 % interval on the average of 4 to 8 tasks
covers 86 to 93 % of leads, the fewest where tasks differ by more than the errors within them.

Of leads over the baseline on every task and average, and of the hypotheses' own, it is said twice what they are: on
these tasks, where others would have been other seeds and test examples, and on new tasks of their kind. Only
hypotheses, which were written down before, are tested, and their p-values corrected for their number. An interval of
another lead is explored: with 50 methods, two or three are "ahead" or "behind" by chance.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.arena.preset import Hypothesis

BETTER, EQUIVALENT, WORSE, UNDECIDED = "better", "equivalent", "worse", "undecided"
AHEAD, CLOSE, BEHIND = "ahead", "close", "behind"
CONFIDENCE = 0.95
TWO_ONE_SIDED = 0.90  # confidence of an interval that lies within the margin if both tests at 5 % pass
KINDS = ("these", "new")  # of tasks, on which there is a lead; new: with the tasks drawn too
Values = NDArray[Any]


class Scores(NamedTuple):
    """The score of a training, in percent."""

    whole: float  # on all test examples
    resampled: Values  # on each resample of them, (resamples,); without labels always that on all


class Lead(NamedTuple):
    """A lead over all seeds in common, and its resamples; what is unknown is NaN.

    A single seed says nothing about others, and has no error.
    """

    mean: float = math.nan  # without a seed in common
    resampled: Values | None = None  # (resamples,)
    freedom: float = math.inf  # degrees of freedom of the error
    error_seeds: float = math.nan  # standard error with tasks and examples fixed
    error_examples: float = math.nan  # with tasks and seeds fixed; unknown without labels

    @property
    def error(self) -> float:
        """The standard error over all that is drawn."""
        return math.nan if self.resampled is None else float(self.resampled.std())

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the ends of Student's interval."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of a lead of 0."""
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return 2 * float(stats.t.sf(abs(self.mean) / self.error, self.freedom))


def on_task(task: str, mine: Mapping[int, Scores], theirs: Mapping[int, Scores]) -> Lead:
    """Return the lead of a method over another, whose scores are by seed."""
    seeds = sorted(mine.keys() & theirs.keys())
    by_seed = np.array([mine[seed].whole - theirs[seed].whole for seed in seeds])
    if len(seeds) < 2:
        return Lead(float(by_seed[0])) if seeds else Lead()
    rows = np.stack([mine[seed].resampled - theirs[seed].resampled for seed in seeds])  # (seeds, resamples)
    # Each task has its own draws, the same for all methods, and others than those of its examples.
    rng = np.random.default_rng([zlib.crc32(task.encode()), len(seeds)])
    drawn = rng.integers(len(seeds), size=(len(seeds) - 1, rows.shape[1]))
    of_seeds = float(stats.sem(by_seed))
    of_examples = float(rows.mean(axis=0).std()) if np.ptp(rows, axis=1).any() else 0.0
    return Lead(
        mean=float(by_seed.mean()),
        resampled=np.take_along_axis(rows, drawn, axis=0).mean(axis=0),
        freedom=_freedom([(of_seeds**2, len(seeds) - 1), (of_examples**2, math.inf)]),
        error_seeds=of_seeds,
        error_examples=of_examples or math.nan,
    )


def mean(leads: Sequence[Lead], is_drawn: bool) -> Lead:
    """Return the mean lead over tasks that share no texts, of these tasks, or of drawn ones; itself if it is one alone.

    It is unknown if one of the leads is, or if there are none.
    """
    if len(leads) < 2:
        return leads[0] if leads else Lead()
    means, count = np.array([lead.mean for lead in leads]), len(leads)
    average = float(means.mean())
    resampled = [lead.resampled for lead in leads if lead.resampled is not None]
    if len(resampled) < count:
        return Lead(average)
    rows = np.stack(resampled)  # (tasks, resamples)
    within, spread = rows.var(axis=1), means.var(ddof=1)
    between = max(0.0, spread - within.mean()) if is_drawn else 0.0  # variance of the tasks' true leads
    drawn = np.random.default_rng(count).integers(count, size=(count - 1, rows.shape[1]))
    of_tasks = (means[drawn].mean(axis=0) - average) * (math.sqrt(between / spread) if spread else 0.0)
    parts = [(between, count - 1), *((one / count, lead.freedom) for one, lead in zip(within, leads, strict=True))]
    return Lead(
        mean=average,
        resampled=average + of_tasks + (rows - rows.mean(axis=1, keepdims=True)).mean(axis=0),
        freedom=_freedom(parts),
        error_seeds=math.hypot(*(lead.error_seeds for lead in leads)) / count,
        error_examples=math.hypot(*(lead.error_examples for lead in leads)) / count,
    )


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a sum of variances, each with its own (Satterthwaite, 1946)."""
    below = sum(variance**2 / freedom for variance, freedom in parts)
    return float(sum(variance for variance, _ in parts) ** 2 / below) if below else math.inf


ByPart = Mapping[str, Mapping[str, Mapping[int, Scores]]]  # by part of a task, method and seed
Leads = tuple[Lead, Lead]  # of these kinds; unknown on new tasks, if it is of a single task
Places = Mapping[str, tuple[str, ...]]  # the tasks of each: one, or those of an average


@dataclass(frozen=True)
class Judge:
    """All scores of a comparison, from which methods are judged."""

    scores: Mapping[str, ByPart]  # by task; a part is a tenant's, or all of it
    places: Places
    margin: float  # percentage points within which methods are equivalent

    def against(self, baseline: str, place: str, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what is said of each method on a task or average."""
        leads = {name: self._leads(place, name, baseline) if name != baseline else (Lead(), Lead()) for name in methods}
        return {name: _shown(its, map(self._explored, its)) for name, its in leads.items()}

    def outcomes(self, hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
        """Return each hypothesis with what is said of it, and the kinds of tasks on which it held.

        A method that is better by less than the margin is equivalent too. What lacks a method on a task, or a seed in
        common, is untested: all that is said is None.
        """
        leads = [self._leads(one.on, one.method, one.against) for one in hypotheses]
        tested = zip(*map(self._tested, zip(*leads, strict=True)), strict=True)
        outcomes = []
        for one, its, said in zip(hypotheses, leads, tested, strict=True):
            held = [
                kind
                for kind, lead, found in zip(KINDS, its, said, strict=True)
                if (self._is_within(lead) if one.expected == EQUIVALENT else found["word"] == BETTER)
            ]
            outcomes.append({**one.model_dump(), "held": held, **_shown(its, said)})
        return outcomes

    def _leads(self, place: str, method: str, against: str) -> Leads:
        """Return the leads on a place; tenants of a task are drawn as the tasks of an average are."""
        by_task = [self.scores[task].items() for task in self.places.get(place, ())]
        parts = [[on_task(part, of.get(method, {}), of.get(against, {})) for part, of in parts] for parts in by_task]
        these, new = (mean([mean(of, is_drawn) for of in parts], is_drawn) for is_drawn in (False, True))
        return these, new if sum(map(len, parts)) > 1 else Lead()

    def _explored(self, lead: Lead) -> dict[str, Any]:
        low, high = lead.interval(CONFIDENCE)
        word = AHEAD if low > 0 else BEHIND if high < 0 else CLOSE if self._is_within(lead) else None
        return {**_known(low=low, high=high), "word": word}

    def _tested(self, leads: Sequence[Lead]) -> Iterator[dict[str, Any]]:
        """Yield better or worse where the corrected test says so, else equivalent if within the margin."""
        corrected = iter(holm([lead.p for lead in leads if not math.isnan(lead.p)]))
        for lead in leads:
            p = math.nan if math.isnan(lead.p) else next(corrected)
            word = None if math.isnan(lead.mean) else EQUIVALENT if self._is_within(lead) else UNDECIDED
            if p < 1 - CONFIDENCE:
                word = BETTER if lead.mean > 0 else WORSE
            low, high = lead.interval(CONFIDENCE)
            yield {**_known(low=low, high=high, p_holm=p), "word": word}

    def _is_within(self, lead: Lead) -> bool:
        """Whether two one-sided tests at 5 % each find the lead above -margin and below margin.

        Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
        """
        low, high = lead.interval(TWO_ONE_SIDED)
        return -self.margin <= low and high <= self.margin


def _known(**values: float) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _shown(leads: Leads, said: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return a lead and its standard errors in percentage points, and what is said of it; what is unknown is None."""
    lead, _ = leads
    known = _known(lead=lead.mean, error_seeds=lead.error_seeds, error_examples=lead.error_examples)
    return known | dict(zip(KINDS, said, strict=True))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    scipy corrects only for false discoveries, and statsmodels would be a large package for three lines.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    corrected: list[float] = np.minimum(steps, 1.0)[np.argsort(order)].tolist()
    return corrected
