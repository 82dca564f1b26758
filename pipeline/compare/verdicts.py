"""What is said of leads: of each method's over the baseline on every task and average, and of the hypotheses' own.

Both are said twice: of these tasks, where others would have been other seeds and test examples, and of new tasks of
their kind. Only hypotheses, which were written down before, are tested, and their p-values corrected for their number.
An interval of another lead is explored: with 50 methods, two or three are "ahead" or "behind" by chance.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.arena.preset import Hypothesis
from pipeline.compare.leads import Lead, Scores, mean, on_task

BETTER, EQUIVALENT, WORSE, UNDECIDED = "better", "equivalent", "worse", "undecided"
AHEAD, CLOSE, BEHIND = "ahead", "close", "behind"
CONFIDENCE = 0.95
TWO_ONE_SIDED = 0.90  # confidence of an interval that lies within the margin if both tests at 5 % pass
ByPart = Mapping[str, Mapping[str, Mapping[int, Scores]]]  # by part of a task, method and seed
Places = Mapping[str, tuple[str, ...]]  # the tasks of each: one, or those of an average


class Said(NamedTuple):
    """What is said of a lead in percentage points. What is unknown is None."""

    low: float | None = None  # 95 % interval
    high: float | None = None
    within_low: float | None = None  # 90 % interval
    within_high: float | None = None
    p: float | None = None
    p_holm: float | None = None  # corrected for the number of hypotheses; None where none was written down
    word: str | None = None


class Leads(NamedTuple):
    """A lead on these tasks, and with the tasks drawn too; None if it is of a single one, or unknown."""

    these: Lead | None = None
    new: Lead | None = None


@dataclass(frozen=True)
class Judge:
    """All scores of a comparison, from which methods are judged."""

    scores: Mapping[str, ByPart]  # by task; a part is a tenant's, or all of it
    places: Places
    margin: float  # percentage points within which methods are equivalent

    def against(self, baseline: str, place: str, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what is said of each method on a task or average."""
        leads = {name: self._leads(place, name, baseline) if name != baseline else Leads() for name in methods}
        return {
            name: _shown(of, {kind: self._explored(lead) for kind, lead in of._asdict().items()})
            for name, of in leads.items()
        }

    def outcomes(self, hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
        """Return each hypothesis with what is said of it, and the kinds of tasks on which it held.

        A method that is better by less than the margin is equivalent too. What lacks a method on a task, or a seed in
        common, is untested: all that is said is None.
        """
        leads = [self._leads(one.on, one.method, one.against) for one in hypotheses]
        these, new = (self._tested(kind) for kind in ([of.these for of in leads], [of.new for of in leads]))
        outcomes = []
        for one, of, *tested in zip(hypotheses, leads, these, new, strict=True):
            said = dict(zip(Leads._fields, tested, strict=True))
            held = [kind for kind, found in said.items() if self._held(one, found)]
            outcomes.append({**one.model_dump(), "held": held, **_shown(of, said)})
        return outcomes

    def _held(self, one: Hypothesis, found: Said) -> bool:
        return self._is_within(found) if one.expected == EQUIVALENT else found.word == BETTER

    def _leads(self, place: str, method: str, against: str) -> Leads:
        """Return the leads on a place; tenants of a task are drawn as the tasks of an average are."""
        by_task = [self.scores[task].items() for task in self.places.get(place, ())]
        parts = [[on_task(part, of.get(method, {}), of.get(against, {})) for part, of in parts] for parts in by_task]
        these, new = (mean([mean(of, is_drawn) for of in parts], is_drawn) for is_drawn in (False, True))
        return Leads(these, new if sum(map(len, parts)) > 1 else None)

    def _explored(self, lead: Lead | None) -> Said:
        found = self._said(lead)
        if found.low is None or found.high is None:
            return found
        word = CLOSE if self._is_within(found) else None
        return found._replace(word=AHEAD if found.low > 0 else BEHIND if found.high < 0 else word)

    def _tested(self, leads: Sequence[Lead | None]) -> Iterator[Said]:
        """Yield better or worse where the corrected test says so, else equivalent if within the margin."""
        every = [self._said(lead) for lead in leads]
        corrected = iter(holm([found.p for found in every if found.p is not None]))
        for lead, found in zip(leads, every, strict=True):
            if lead is None:
                yield found
                continue
            p_holm = None if found.p is None else next(corrected)
            word = EQUIVALENT if self._is_within(found) else UNDECIDED
            if p_holm is not None and p_holm < 1 - CONFIDENCE:
                word = BETTER if lead.mean > 0 else WORSE
            yield found._replace(p_holm=p_holm, word=word)

    def _said(self, lead: Lead | None) -> Said:
        if lead is None:
            return Said()
        (low, high), (within_low, within_high) = lead.interval(CONFIDENCE), lead.interval(TWO_ONE_SIDED)
        return Said(low, high, within_low, within_high, lead.p)

    def _is_within(self, found: Said) -> bool:
        """Whether two one-sided tests at 5 % each find the lead above -margin and below margin.

        Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
        """
        low, high = found.within_low, found.within_high
        return low is not None and high is not None and -self.margin <= low and high <= self.margin


def _shown(of: Leads, said: Mapping[str, Said]) -> dict[str, Any]:
    """Return a lead, its standard errors, and what is said of it, for JSON."""
    lead = of.these
    return {
        "lead": lead.mean if lead else None,
        "error_seeds": lead.error_seeds if lead else None,
        "error_examples": lead.error_examples if lead else None,
        **{kind: found._asdict() for kind, found in said.items()},
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
