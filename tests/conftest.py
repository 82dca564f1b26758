"""Settings for all tests: no hub, no deadline on a first call, one thread."""

import gc
import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

# Before anything imports transformers or datasets: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # with threads of tokenizers, a server that is forked would hang
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for processes that run in other folders
os.environ.pop("DVC_ROOT", None)  # where checkpoints would go if a stage of DVC ran the tests

import jinja2
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests import helpers, rows

# The first call of many a torch operation takes longer than hypothesis' 200 ms.
settings.register_profile("default_suite", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=200)
settings.load_profile("default_suite")  # `make nightly` names the other one

# Models this small lose more to waking threads than they gain; and sums keep one order, which `torch.equal` needs.
torch.set_num_threads(1)

# PEFT writes a card beside each adapter, and would compile its template each time.
jinja2.Environment.compile = lru_cache(jinja2.Environment.compile)


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


def pytest_collection_finish():
    """What is imported stays: without it, every full garbage collection would look at a million objects again."""
    gc.collect()
    gc.freeze()
