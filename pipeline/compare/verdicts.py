"""What is said of leads: of each method's over the baseline on every task and average, and of the hypotheses' own.

Both are said twice: of these tasks, where others would have been other seeds and test examples, and of new tasks of
their kind. Only hypotheses, which were written down before, are tested, and their p-values corrected for their number.
An interval of another lead is explored: with 50 methods, two or three are "ahead" or "behind" by chance.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arena.preset import Hypothesis
from pipeline.compare.leads import Lead, Scores, mean, on_task

BETTER, EQUIVALENT, WORSE, UNDECIDED = "better", "equivalent", "worse", "undecided"
AHEAD, CLOSE, BEHIND = "ahead", "close", "behind"
CONFIDENCE = 0.95
TWO_ONE_SIDED = 0.90  # confidence of an interval that lies within the margin if both tests at 5 % pass
ByPart = Mapping[str, Mapping[str, Mapping[int, Scores]]]  # by part of a task, method and seed
KINDS = ("these", "new")  # of tasks, on which there is a lead; new: with the tasks drawn too
Leads = tuple[Lead | None, Lead | None]  # of these kinds; None: unknown, or of a single task
Places = Mapping[str, tuple[str, ...]]  # the tasks of each: one, or those of an average


@dataclass(frozen=True)
class Judge:
    """All scores of a comparison, from which methods are judged."""

    scores: Mapping[str, ByPart]  # by task; a part is a tenant's, or all of it
    places: Places
    margin: float  # percentage points within which methods are equivalent

    def against(self, baseline: str, place: str, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what is said of each method on a task or average."""
        leads = {name: self._leads(place, name, baseline) if name != baseline else (None, None) for name in methods}
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
        return these, new if sum(map(len, parts)) > 1 else None

    def _explored(self, lead: Lead | None) -> dict[str, Any]:
        found = _ends(lead)
        word = CLOSE if self._is_within(lead) else None
        if found["low"] is not None:
            word = AHEAD if found["low"] > 0 else BEHIND if found["high"] < 0 else word
        return {**found, "word": word}

    def _tested(self, leads: Sequence[Lead | None]) -> Iterator[dict[str, Any]]:
        """Yield better or worse where the corrected test says so, else equivalent if within the margin."""
        corrected = iter(holm([lead.p for lead in leads if lead and lead.p is not None]))
        for lead in leads:
            p = next(corrected) if lead and lead.p is not None else None
            word = None if lead is None else EQUIVALENT if self._is_within(lead) else UNDECIDED
            if lead and p is not None and p < 1 - CONFIDENCE:
                word = BETTER if lead.mean > 0 else WORSE
            yield {**_ends(lead), "p_holm": p, "word": word}

    def _is_within(self, lead: Lead | None) -> bool:
        """Whether two one-sided tests at 5 % each find the lead above -margin and below margin.

        Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
        """
        low, high = lead.interval(TWO_ONE_SIDED) if lead else (None, None)
        return low is not None and high is not None and -self.margin <= low and high <= self.margin


def _ends(lead: Lead | None) -> dict[str, Any]:
    low, high = lead.interval(CONFIDENCE) if lead else (None, None)
    return {"low": low, "high": high}


def _shown(leads: Leads, said: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return a lead and its standard errors in percentage points, and what is said of it; what is unknown is None."""
    lead, _ = leads
    return {
        "lead": lead.mean if lead else None,
        "error_seeds": lead.error_seeds if lead else None,
        "error_examples": lead.error_examples if lead else None,
        **dict(zip(KINDS, said, strict=True)),
    }


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
