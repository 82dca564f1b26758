"""What is tried, and what came of it: a trial that raises anything has failed, and one that never began has too."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

from hypothesis.strategies import SearchStrategy

from tests.mutations import examples

Drawn = TypeVar("Drawn")


class Trial(NamedTuple):
    """One thing that may go wrong; `run` raises if it does."""

    name: str
    run: Callable[[], None]


class Case(NamedTuple):
    """Trials of one kind. They are made in an empty folder; what is random in them is drawn from a generator."""

    name: str
    count: int
    trials: Callable[[Path, int, Random], Iterator[Trial]]


class Outcome(NamedTuple):
    """How many trials of a case there were to be, began, and went well; and of the others, why."""

    name: str
    planned: int
    tried: int
    clean: int
    reasons: list[str]

    @property
    def failed(self) -> int:
        """All that did not go well, whether they began or not."""
        return self.planned - self.clean


def run(case: Case, folder: Path, random: Random, advance: Callable[[int], None]) -> Outcome:
    """Run all trials of a case, whatever comes of each."""
    tried, clean, reasons = 0, 0, []
    try:
        for trial in case.trials(folder, case.count, random):
            tried += 1
            try:
                trial.run()
                clean += 1
            except Exception:
                reasons.append(f"{case.name}: {trial.name}: {_reason()}")
            advance(1)
    except Exception:
        reasons.append(f"{case.name}: no more trials could be made: {_reason()}")
    if tried != case.count:
        reasons.append(f"{case.name}: {case.count} trials were planned, {tried} were made")
    return Outcome(case.name, max(case.count, tried), tried, clean, reasons)


def many(strategy: SearchStrategy[Drawn], random: Random) -> Iterator[Drawn]:
    """Yield examples of a strategy without end."""
    while True:
        yield from examples(strategy, 50, random.randrange(2**32))


def _reason() -> str:
    return traceback.format_exc().rstrip().replace("\n", "\n    ")
