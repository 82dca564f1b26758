"""A disk that takes less than a stage writes: a plain line, the last outputs whole, and all is well with more room."""

from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from pipeline import stage
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN
from tests.torture.children import check_plain, ended
from tests.torture.kills import Runs
from tests.torture.trials import Case, Trial

STAGES = (TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Bound the size of files by what a random output of a random stage has, or less."""
    runs = Runs(folder)
    with chdir(runs.folder):
        sizes = sorted(path.stat().st_size for name in ("artifacts", "reports") for path in Path(name).rglob("*.*"))

    def trial(one: Any, largest: int) -> None:
        action = partial(stage.run, one[0].main, one[1])
        while (end := ended(runs.folder, action, largest)).status == 0:
            assert largest, "it has written nothing"
            largest //= 2
        check_plain(end, {1, 2})
        assert runs.written() == runs.undisturbed
        runs.check()

    for number in range(count):
        one, largest = STAGES[number % len(STAGES)], random.randrange(random.choice(sizes))
        yield Trial(f"{one[0].__name__}, files of at most {largest} bytes", partial(trial, one, largest))


CASES = (Case("full-disk", 40, trials),)
