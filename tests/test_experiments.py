"""Experiments at the same time, each in a clone of its own: all arrive, all are right."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests import workspace
from tests.repository import command, make, share

pytestmark = pytest.mark.nightly
JOB = workspace.ROOT / "examples/cluster/job.sh"
METRICS = "reports/evaluate/metrics.json"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make(tmp_path_factory.mktemp("repository"))


def scores(repository):
    """Return the metrics of all experiments by name."""
    table = json.loads(command(repository, "dvc", "exp", "show", "--all-commits", "--json"))
    rows = [row for revision in table for row in revision.get("experiments") or []]
    return {row["name"]: row["revs"][0]["data"]["metrics"][METRICS]["data"] for row in rows}


def check_alone(repository, name, seeds):
    """Compare the experiments name-1, name-2, ... with runs of their seeds one by one."""
    together = scores(repository)
    for number, seed in enumerate(seeds, start=1):
        words = ("--temp", "--force", "--name", f"{name}-alone-{number}", "-S", f"seed={seed}")
        command(repository, "dvc", "exp", "run", *words)
    alone = scores(repository)
    for number in range(1, len(seeds) + 1):
        assert together[f"{name}-{number}"] == alone[f"{name}-alone-{number}"]


@pytest.mark.parametrize("cache", [False, True], ids=["a remote", "a shared cache"])
def test_jobs_each_in_a_clone_of_its_own_all_arrive(repository, tmp_path, cache):
    original, name, seeds = tmp_path / "original", "job", (21, 22, 23)
    command(tmp_path, "git", "clone", "--quiet", str(repository), str(original))
    command(original, "git", "remote", "remove", "origin")
    command(original, "dvc", "cache", "dir", "--local", str(repository / ".dvc/cache"))
    bare = tmp_path / "bare.git"
    share(original, tmp_path / "remote", bare)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("".join(f"--name {name}-{i} -S seed={seed}\n" for i, seed in enumerate(seeds, start=1)))
    where = original if cache else bare
    environment = {"DVC_CACHE": str(repository / ".dvc/cache")} if cache else {}
    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(partial(command, original, JOB, where, jobs, **environment), map(str, range(1, len(seeds) + 1))))
    if not cache:
        command(original, "dvc", "exp", "pull", "origin", "--all-commits")
    check_alone(original, name, seeds)
