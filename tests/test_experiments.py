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


@pytest.mark.parametrize("cache", [False, True], ids=["a remote", "a shared cache"])
def test_jobs_each_in_a_clone_of_its_own_all_arrive(repository, tmp_path, cache):
    original, seeds = tmp_path / "original", ("21", "22", "23")
    command(tmp_path, "git", "clone", "--quiet", str(repository), str(original))
    command(original, "git", "remote", "remove", "origin")
    command(original, "dvc", "cache", "dir", "--local", str(repository / ".dvc/cache"))
    bare = tmp_path / "bare.git"
    share(original, tmp_path / "remote", bare)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("".join(f"--name job-{seed} -S seed={seed}\n" for seed in seeds))
    where = original if cache else bare
    environment = {"DVC_CACHE": str(repository / ".dvc/cache")} if cache else {}
    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(partial(command, original, JOB, where, jobs, **environment), ("1", "2", "3")))
    if not cache:
        command(original, "dvc", "exp", "pull", "origin", "--all-commits")
    for seed in seeds:
        command(original, "dvc", "exp", "run", "--temp", "--force", "--name", f"alone-{seed}", "-S", f"seed={seed}")
    table = json.loads(command(original, "dvc", "exp", "show", "--all-commits", "--json"))
    rows = [row for revision in table for row in revision.get("experiments") or []]
    found = {row["name"]: row["revs"][0]["data"]["metrics"][METRICS]["data"] for row in rows}
    assert [found[f"job-{seed}"] for seed in seeds] == [found[f"alone-{seed}"] for seed in seeds]
