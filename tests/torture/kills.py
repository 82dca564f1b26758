"""A run of all stages that is killed, at any moment or at a write, ends with the same bytes when it is run again."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from random import Random

import torch

from pipeline.core import artifacts
from tests import deaths, repository, workspace
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, digests, leftovers, run
from tests.torture.trials import Case, Trial

STAGES = (TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
MOST_KILLS = 3  # one after another, before a run is left alone


def everything() -> None:
    """Run all stages in this process, which is nobody else's, as if each had its own."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for one in STAGES:
        artifacts.sweep()
        run(one)


class Runs:
    """A folder in which all stages run, and what an undisturbed run writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"
        workspace.make(self.folder, train={"epochs": 3}, lsr={"dropout": 0.1})
        repository.move_where_dvc_watches(self.folder)
        self.run()
        begin = time.monotonic()
        self.operations = self.run()
        self.seconds = time.monotonic() - begin
        self.undisturbed = self.written()

    def run(self) -> list[str]:
        """Run to the end; return the file operations."""
        return deaths.operations(self.folder, everything)

    def written(self) -> dict[str, str]:
        """Return the digests of all that the stages write."""
        with chdir(self.folder):
            return digests("artifacts") | digests("reports")

    def check(self) -> None:
        """Run again, and compare."""
        self.run()
        assert self.written() == self.undisturbed
        with chdir(self.folder):
            assert leftovers() == set()

    def forget(self) -> None:
        """Remove all outputs, as DVC does before it runs a stage."""
        for name in ("artifacts", "reports"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def at_random(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Kill runs up to three times, at moments that are spread over the time that a run takes."""
    runs = Runs(folder)

    def trial(moments: list[float], has_outputs: bool) -> None:
        if not has_outputs:
            runs.forget()
        for moment in moments:
            while not _kill(runs, moment):
                moment /= 2
        runs.check()

    for number in range(count):
        moments = [random.uniform(0, 0.9) * runs.seconds for _ in range(random.randint(1, MOST_KILLS))]
        has_outputs = random.random() < 0.5
        what = f"{number}: {'with' if has_outputs else 'without'} outputs, after {moments} seconds"
        yield Trial(what, partial(trial, moments, has_outputs))


def _kill(runs: Runs, moment: float) -> bool:
    """Start a run and kill it after some seconds; say whether it had not ended before."""
    process = deaths.CONTEXT.Process(target=_everything_in, args=(runs.folder,))
    process.start()
    process.join(moment)
    process.kill()
    process.join()
    return process.exitcode != 0


def _everything_in(folder: Path) -> None:
    with chdir(folder):
        everything()


def at_writes(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Kill runs at one of their file operations: the last of each kind first, then any."""
    runs = Runs(folder)
    numbers = sorted(deaths.kinds(runs.operations).values())
    others = sorted(set(range(1, len(runs.operations) + 1)) - set(numbers))
    random.shuffle(numbers)
    random.shuffle(others)

    def trial(number: int) -> None:
        deaths.die(runs.folder, everything, number)
        runs.check()

    for number in (numbers + others)[:count]:
        yield Trial(f"at {number}, {runs.operations[number - 1]}", partial(trial, number))


CASES = (Case("kills-at-random", 50, at_random), Case("kills-at-writes", 50, at_writes))
