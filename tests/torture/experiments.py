"""Experiments at the same time: two in one clone, and several each in a clone of its own; all arrive, all are right."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests import workspace
from tests.repository import command, make, share
from tests.torture.trials import Case, Trial

AT_ONCE = 4
JOB = workspace.ROOT / "examples/cluster/job.sh"
METRICS = "reports/evaluate/metrics.json"


def scores(repository: Path) -> dict[str, Any]:
    """Return the metrics of all experiments by name."""
    table = json.loads(command(repository, "dvc", "exp", "show", "--all-commits", "--json"))
    rows = [row for revision in table for row in revision.get("experiments") or []]
    return {row["name"]: row["revs"][0]["data"]["metrics"][METRICS]["data"] for row in rows}


def run_experiment(repository: Path, name: str, *words: str) -> None:
    """Run an experiment in a temporary copy: without the word, DVC refuses it where another command holds the clone."""
    run = ("dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name, *words)
    command(repository, *run)


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
        for seed in set(seeds):
            run_experiment(repository, f"alone{number}-{seed}", "-S", f"seed={seed}", "--force")
        alone = scores(repository)
        for name, seed in zip(names, seeds, strict=True):
            assert found[name] == alone[f"alone{number}-{seed}"], name

    for number in range(count):
        seeds = [random.randrange(10**6)] * 2 if number % 2 else random.sample(range(10**6), 2)
        yield Trial(f"seeds {seeds}", partial(trial, number, seeds))


def in_clones(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Run a sweep as a cluster does, a job a clone and several at once, and have all arrive where one looks at them."""
    original = make(folder / "original")
    bare, remote = folder / "bare.git", folder / "remote"
    share(original, remote, bare)

    def trial(name: str, seeds: list[int], where: Path, environment: dict[str, str]) -> None:
        jobs = folder / f"{name}.txt"
        values = f"seed={','.join(map(str, seeds))}"
        jobs.write_text(command(original, sys.executable, "-m", "pipeline.sweep", "--name", name, values))
        with ThreadPoolExecutor(len(seeds)) as pool:
            job = partial(command, original, JOB, where, jobs, **environment)
            list(pool.map(job, map(str, range(1, len(seeds) + 1))))
        if where == bare:
            command(original, "dvc", "exp", "pull", "origin", "--all-commits")
        found = scores(original)
        for number, seed in enumerate(seeds, start=1):
            run_experiment(original, f"{name}-alone-{number}", "-S", f"seed={seed}", "--force")
        alone = scores(original)
        for number in range(1, len(seeds) + 1):
            assert found[f"{name}-{number}"] == alone[f"{name}-alone-{number}"]

    ways = (("a remote", bare, {}), ("a shared cache", original, {"DVC_CACHE": str(original / ".dvc/cache")}))
    for number in range(count):
        seeds = random.sample(range(10**6), AT_ONCE)
        what, where, environment = ways[number % len(ways)]
        yield Trial(f"seeds {seeds}, {what}", partial(trial, f"sweep{number}", seeds, where, environment))


CASES = (Case("experiments-at-once", 4, in_one_clone), Case("experiments-in-clones", 2, in_clones))
