"""Experiments at the same time: two in one clone, and several each in a clone of its own; all arrive, all are right."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.repository import clone, command, make, share
from tests.torture.trials import Case, Trial

AT_ONCE = 4
METRICS = "reports/evaluate/metrics.json"


def scores(repository: Path) -> dict[str, Any]:
    """Return the metrics of all experiments by name."""
    table = json.loads(command(repository, "dvc", "exp", "show", "--all-commits", "--json"))
    rows = [row for revision in table for row in revision.get("experiments") or []]
    return {row["name"]: row["revs"][0]["data"]["metrics"][METRICS]["data"] for row in rows}


def run_experiment(repository: Path, name: str, *words: str) -> None:
    """Run an experiment in a temporary copy."""
    command(repository, "dvc", "exp", "run", "--temp", "--name", name, *words)


def in_one_clone(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Start two experiments of one clone at once, with the same values or with others."""
    repository = make(folder / "repository")

    def trial(number: int, seeds: list[int]) -> None:
        names = [f"try{number}-{place}" for place in range(len(seeds))]
        with ThreadPoolExecutor(len(seeds)) as pool:
            runs = [
                pool.submit(run_experiment, repository, name, "-S", f"seed={seed}")
                for name, seed in zip(names, seeds, strict=True)
            ]
        for one in runs:
            one.result()
        found = scores(repository)
        for name, seed in zip(names, seeds, strict=True):
            run_experiment(repository, f"{name}-alone", "-S", f"seed={seed}", "--force")
            assert found[name] == scores(repository)[f"{name}-alone"], name

    for number in range(count):
        seeds = [random.randrange(10**6)] * 2 if number % 2 else random.sample(range(10**6), 2)
        yield Trial(f"seeds {seeds}", partial(trial, number, seeds))


def in_clones(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Run experiments at once, each in a clone of its own, and have all of them arrive where one looks at them."""
    original = make(folder / "original")
    share(original, folder / "remote", folder / "bare.git")

    def job(seed: int) -> None:
        here = clone(folder / "bare.git", folder / f"clone-{seed}")
        command(here, "dvc", "pull", "--run-cache")
        run_experiment(here, f"seed-{seed}", "-S", f"seed={seed}")
        command(here, "dvc", "exp", "push", "origin", f"seed-{seed}")

    def trial(seeds: list[int]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(job, seeds))
        command(original, "dvc", "exp", "pull", "origin", "--all-commits")
        found = scores(original)
        for seed in seeds:
            there = scores(folder / f"clone-{seed}")[f"seed-{seed}"]
            assert found[f"seed-{seed}"] == there
            shutil.rmtree(folder / f"clone-{seed}")

    for _ in range(count):
        seeds = random.sample(range(10**6), AT_ONCE)
        yield Trial(f"seeds {seeds}", partial(trial, seeds))


CASES = (Case("experiments-at-once", 4, in_one_clone), Case("experiments-in-clones", 2, in_clones))
