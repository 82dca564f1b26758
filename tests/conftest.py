"""Settings for all tests: no hub, no deadline on a first call, one thread."""

import gc
import hashlib
import json
import os
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path

# Before anything imports transformers or datasets: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for processes that run in other folders
os.environ.pop("DVC_ROOT", None)  # where checkpoints would go if a stage of DVC ran the tests

import jinja2
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests import helpers, kit, rows, workspace

# The first call of many a torch operation takes longer than hypothesis' 200 ms.
settings.register_profile("default_suite", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=200)
settings.load_profile("nightly" if kit.NIGHTLY else "default_suite")

# Models this small lose more to waking threads than they gain; and sums keep one order, which `torch.equal` needs.
torch.set_num_threads(1)

# PEFT writes a card beside each adapter, and would compile its template each time.
jinja2.Environment.compile = lru_cache(jinja2.Environment.compile)


@pytest.fixture(scope="session")
def done(tmp_path_factory, worker_id):
    """A function that returns the workspace after all stages with an adapter, which nobody changes.

    `changes` are those of params.yaml before the stages. The first worker that needs one makes it, for all workers.
    """
    from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, run_in

    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def after_all_stages(adapter="lsr", **changes):
        folder = root / f"done-{hashlib.sha256(json.dumps([adapter, changes]).encode()).hexdigest()[:12]}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                made = workspace.make(Path(f"{folder}.making"), adapter=adapter, **changes)
                run_in(made, TOKENIZE, FACTORIZE, TRAIN, EVALUATE).rename(folder)
        return folder

    return after_all_stages


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id):
    """A function that returns a workspace after all four stages, which nobody changes.

    It takes the arguments of `rows.make_workspace`. The first worker that needs a workspace makes it, for all workers.
    """
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def after_all_stages(data="two", architecture="bert", **options):
        asked = json.dumps([data, architecture, options], sort_keys=True, default=str)
        folder = root / f"trained-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                made = rows.make_workspace(Path(f"{folder}.making"), data, architecture, **options)
                helpers.run_stages(made).rename(folder)
        return folder

    return after_all_stages


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A function that goes to a copy of a trained workspace, which the test may change, and returns its folder."""

    def go(*arguments, **options):
        shutil.copytree(trained(*arguments, **options), tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return go


@pytest.fixture
def after(done, tmp_path, monkeypatch):
    """A function that goes to a copy of the workspace after all stages, and changes params.yaml there."""

    def go(adapter="lsr", **changes):
        shutil.copytree(done(adapter), tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        workspace.change(**changes)
        return tmp_path

    return go


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """The folder of `save_bank`: a base model, adapters of tenants and their bank, which nobody changes."""
    from tests.lsr.serve.tenants import save_bank

    folder = tmp_path_factory.mktemp("server")
    save_bank(folder)
    return folder


@pytest.fixture
def trials(request, record_property):
    """A counter, in which a test of attacks or accidents counts its `trials`, for the table at the end; else it is one.

    The table has a line for each test, after the name of its file, which is the kind of its trials.
    """
    counted = Counter()
    yield counted
    kind, name = (
        name.removeprefix("test_").replace("_", " ") for name in (request.path.stem, request.node.originalname)
    )
    record_property("trials", (kind, name, counted["trials"] or 1))


def pytest_collection_finish():
    """What is imported stays: without it, every full garbage collection would look at a million objects again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Print how many trials there were and how many tests of them failed, by kind and test; and what was measured.

    Workers of xdist send reports with these properties, so the numbers are those of all of them.
    """
    kinds = terminalreporter.stats.values()
    reports = [report for kind in kinds for report in kind if isinstance(report, pytest.TestReport)]
    failed = {report.nodeid for report in reports if report.failed}
    trials = Counter()
    failures = Counter()
    for report in reports:
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == "trials":
                kind, test, count = value
                trials[kind, test] += count
                failures[kind, test] += report.nodeid in failed
            elif name == "measured":
                terminalreporter.write_line(value)
    kinds_of_trials = sorted({kind for kind, _ in trials})
    for kind in kinds_of_trials:
        tests = [(test, count) for (name, test), count in sorted(trials.items()) if name == kind]
        terminalreporter.write_line(f"{kind}: {sum(count for _, count in tests):,} trials")
        for test, count in tests:
            terminalreporter.write_line(f"{count:7,} trials, {failures[kind, test]} failures: {test}")
    if trials:
        terminalreporter.write_line(f"{trials.total():7,} trials, {failures.total()} failures in all")
