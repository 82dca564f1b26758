"""What is tested: each method against the baseline on every task and average, and the hypotheses of the preset."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.arena.preset import Hypothesis
from pipeline.compare.leads import Lead, Scores, on_task, over_tasks

BETTER, EQUIVALENT, WORSE, UNDECIDED = "better", "equivalent", "worse", "undecided"
CONFIDENCE = 0.95
TWO_ONE_SIDED = 0.90  # confidence of an interval that lies within the margin if both tests at 5 % pass
ByPart = Mapping[str, Mapping[str, Mapping[int, Scores]]]  # by part of a task, method and seed
Places = Mapping[str, tuple[str, ...]]  # the tasks of each: one, or those of an average


class Verdict(NamedTuple):
    """The lead of one method over another, in percentage points, and what it says of them. What is unknown is None."""

    difference: float | None = None
    difference_low: float | None = None  # 95 % interval
    difference_high: float | None = None
    equivalence_low: float | None = None  # 90 % interval
    equivalence_high: float | None = None
    error_seeds: float | None = None  # standard errors
    error_examples: float | None = None
    p: float | None = None
    p_holm: float | None = None  # corrected for the number of methods there, or of hypotheses
    verdict: str | None = None


@dataclass(frozen=True)
class Judge:
    """All scores of a comparison, from which methods are judged."""

    scores: Mapping[str, ByPart]  # by task; a part is a tenant's, or all of it
    places: Places
    margin: float  # percentage points within which methods are equivalent

    def against(self, baseline: str, place: str, methods: Iterable[str]) -> dict[str, Verdict]:
        """Return the verdict on each method on a task or average."""
        leads = [self._lead(place, method, baseline) if method != baseline else None for method in methods]
        return dict(zip(methods, self._verdicts(leads), strict=True))

    def outcomes(self, hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
        """Return each hypothesis with its verdict, and whether it held.

        A method that is better by less than the margin is equivalent too. What lacks a method on a task, or a seed in
        common, is untested: all of its verdict is None.
        """
        verdicts = self._verdicts([self._lead(one.on, one.method, one.against) for one in hypotheses])
        outcomes = []
        for one, found in zip(hypotheses, verdicts, strict=True):
            held = self._is_within(found) if one.expected == EQUIVALENT else found.verdict == BETTER
            outcomes.append({**one.model_dump(), "held": held, **found._asdict()})
        return outcomes

    def _lead(self, place: str, method: str, against: str) -> Lead | None:
        return _mean([self._lead_on(task, method, against) for task in self.places.get(place, ())])

    def _lead_on(self, task: str, method: str, against: str) -> Lead | None:
        """Return a lead on a task; over its tenants, if there are some, who are drawn as tasks are."""
        return _mean([on_task(part, of.get(method, {}), of.get(against, {})) for part, of in self.scores[task].items()])

    def _verdicts(self, leads: Sequence[Lead | None]) -> Iterator[Verdict]:
        ps = [lead.p if lead else None for lead in leads]
        corrected = iter(holm([p for p in ps if p is not None]))
        for lead, p in zip(leads, ps, strict=True):
            yield self._verdict(lead, p, None if p is None else next(corrected)) if lead else Verdict()

    def _verdict(self, lead: Lead, p: float | None, p_holm: float | None) -> Verdict:
        """Return better or worse where the corrected test says so, else equivalent if within the margin."""
        (low, high), (within_low, within_high) = lead.interval(CONFIDENCE), lead.interval(TWO_ONE_SIDED)
        errors = lead.error_seeds, lead.error_examples
        found = Verdict(lead.mean, low, high, within_low, within_high, *errors, p, p_holm)
        if p_holm is not None and p_holm < 1 - CONFIDENCE:
            return found._replace(verdict=BETTER if lead.mean > 0 else WORSE)
        return found._replace(verdict=EQUIVALENT if self._is_within(found) else UNDECIDED)

    def _is_within(self, found: Verdict) -> bool:
        """Whether two one-sided tests at 5 % each find the lead above -margin and below margin.

        Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
        """
        low, high = found.equivalence_low, found.equivalence_high
        return low is not None and high is not None and -self.margin <= low and high <= self.margin


def _mean(leads: Sequence[Lead | None]) -> Lead | None:
    """Return the mean lead, itself if it is a single one; None if one is missing, or all are."""
    known = [lead for lead in leads if lead]
    if not known or len(known) < len(leads):
        return None
    return over_tasks(known) if len(known) > 1 else known[0]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    scipy corrects only for false discoveries, and statsmodels would be a large package for three lines.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1.0)
    return [float(value) for value in corrected]
