"""What is tried, and what came of it: a trial that raises anything has failed, and one that never began has too."""

import json
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
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


class Result(NamedTuple):
    """What came of a trial: `reason` says why it failed, if it did. `number` is None where no more could be made."""

    case: str
    number: int | None
    seconds: float  # since the last one
    reason: str | None


class Outcome(NamedTuple):
    """How many trials of a case began, and went well; and of the others, why."""

    tried: int
    clean: int
    failed: int
    seconds: float
    reasons: list[str]


def run(case: Case, folder: Path, random: Random, done: Collection[int] = ()) -> Iterator[Result]:
    """Run the trials of a case but those that are done, whatever comes of each; yield what came of it."""
    before = time.monotonic()
    number, tried = 0, 0

    def result(of: int | None, reason: str | None) -> Result:
        nonlocal before
        seconds, before = time.monotonic() - before, time.monotonic()
        return Result(case.name, of, round(seconds, 3), reason)

    try:
        for number, trial in enumerate(case.trials(folder, case.count, random), start=1):
            tried = number
            if number in done:
                continue
            try:
                trial.run()
            except Exception:
                yield result(number, f"{case.name}: {trial.name}: {_reason()}")
            else:
                yield result(number, None)
    except Exception:
        yield result(None, f"{case.name}: no more trials could be made: {_reason()}")
    if tried != case.count:
        yield result(None, f"{case.name}: {case.count} trials were planned, {tried} were made")


def outcome(case: Case, results: Iterable[Result], *, stopped: bool = False) -> Outcome:
    """Return what came of a case: all that did not go well has failed, begun or not, unless the case was stopped."""
    own = [result for result in results if result.case == case.name]
    tried = [result for result in own if result.number is not None]
    clean = sum(result.reason is None for result in tried)
    is_whole = not stopped or len(tried) < len(own)  # it has said why no more trials could be made
    planned = max(case.count, len(tried)) if is_whole else len(tried)
    reasons = [result.reason for result in own if result.reason is not None]
    return Outcome(len(tried), clean, planned - clean, sum(result.seconds for result in own), reasons)


class Journal:
    """A file of results, a line each, of one version of the code and one seed: a run that was stopped goes on there."""

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version
        self.results: list[Result] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] == [version]:
            found = [Result(*json.loads(line)) for line in lines[1:] if line.endswith("]")]
            self.results = [result for result in found if result.number is not None]  # the others are found again
        self._write([version, *(json.dumps(result) for result in self.results)], "w")

    def add(self, result: Result) -> None:
        """Keep a result."""
        self.results.append(result)
        self._write([json.dumps(result)], "a")

    def done(self, case: Case) -> frozenset[int]:
        """Return the numbers of a case's trials that have run."""
        return frozenset(one.number for one in self.results if one.case == case.name and one.number is not None)

    def _write(self, lines: Iterable[str], mode: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open(mode, encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def many(strategy: SearchStrategy[Drawn], random: Random) -> Iterator[Drawn]:
    """Yield examples of a strategy without end."""
    while True:
        yield from examples(strategy, 50, random.randrange(2**32))


def _reason() -> str:
    return traceback.format_exc().rstrip().replace("\n", "\n    ")
