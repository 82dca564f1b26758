"""Each parameter of params.yaml has an effect that can be seen, or is refused in a line: none is ignored.

Stages run on a tiny workspace with one value changed, in this process, and what they write is compared with what they
wrote before; cards are left out, since they list all parameters.
"""

import os
import shutil
from contextlib import chdir
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.core import artifacts
from pipeline.params.effects import COMMITTED, UNREAD_BY_REGRESSION
from pipeline.params.schema import Params
from pipeline.params.sections import EvaluateParams, FullParams, LsrParams, PeftParams, TenantsParams, TokenizeParams
from pipeline.params.sections import TrainParams as Train
from pipeline.training import processes
from tests import architectures, kit, workspace, writers
from tests.kit import digests, refused
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, run, run_in
from tests.stages.test_tenants import LABELS, rows

CASES = workspace.read_yaml(Path(__file__).with_name("effects.yaml"))
CARDS = {"README.md", "card.md"}
STAGES = [TOKENIZE, FACTORIZE, TRAIN, EVALUATE]
# The stage from which on a section, or a key of no section, is read.
FIRST = {"data": 0, "model": 0, "tokenize": 0, "train": 2, "tenants": 1, "evaluate": 3}
SEEN = {"train.processes", "train.compile", "train.report_to", "evaluate.batch_size"}  # otherwise than in files
SECTIONS = {"tokenize": TokenizeParams, "train": Train, "tenants": TenantsParams, "evaluate": EvaluateParams}
OF_METHODS = {"lsr": LsrParams, "full": FullParams, "lora": PeftParams}


def leaves():
    outer = Params.model_fields.keys() - {*SECTIONS, "lsr", "full", "head_only", "regression", "methods"}
    inner = {f"{name}.{field}" for name, schema in (SECTIONS | OF_METHODS).items() for field in schema.model_fields}
    committed = workspace.read_yaml(workspace.ROOT / "params.yaml")
    named = {f"{name}.{key}" for name, section in committed.items() if isinstance(section, dict) for key in section}
    # Sections of other methods are of the same schemas: what they set beside PEFT's own keys is in the two of them.
    return outer | inner | {key for key in named if key.partition(".")[0] not in {"directions"}}


def test_every_leaf_has_a_case():
    shared = {"type", "learning_rate", "target_modules"}  # of which the section lora has the cases
    lacking = leaves() - CASES.keys() - SEEN
    assert {leaf for leaf in lacking if leaf.partition(".")[2] not in shared} == set()


def test_what_is_set_differs_from_what_is_committed():
    committed = workspace.read_yaml(workspace.ROOT / "params.yaml")
    for key, value in COMMITTED.items():
        section, _, field = key.rpartition(".")
        assert (committed[section] if section else committed)[field] == value, key
    for name, value in UNREAD_BY_REGRESSION.items():
        in_file = committed["train"].get(name, Train.model_fields[name].default)
        assert in_file == (list(value) if isinstance(value, tuple) else value), name
    for name in ("init_examples", "init_head_steps", "init_epochs"):
        assert committed["lsr"][name] == LsrParams.model_fields[name].default


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A function that returns a workspace of a kind, in which tokens are made."""
    root = tmp_path_factory.mktemp("effects")

    @cache
    def made(kind):
        folder = root / kind
        if kind == "writing":
            writers.make(folder, train={"epochs": 1}, evaluate={"max_new_tokens": 64})
        else:
            workspace.make(folder, {"shops": workspace.ROWS["shops"]}, data=kind)
            kit.write(folder / "data/shops.csv", rows(LABELS))
            architectures.save(folder / "models/wide", "mpnet")
        if kind == "shops":
            with chdir(folder):
                run(TOKENIZE)
                workspace.change(adapter="lora")
                run(FACTORIZE, TRAIN)  # what later tenants may share
                workspace.change(adapter="lsr")
            (folder / artifacts.ADAPTER).rename(folder / "models/shared")
        return run_in(folder, TOKENIZE)

    return made


ALL = [(leaf, case) for leaf, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("leaf", "case"), ALL, ids=[f"{leaf}={case['to']}" for leaf, case in ALL])
def test_a_parameter_changes_the_result_or_is_refused(tokenized, tmp_path, leaf, case):
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    section, _, field = leaf.rpartition(".")
    for folder in (plain, changed):
        shutil.copytree(tokenized(case.get("on", "glue")), folder)
        with chdir(folder):
            workspace.change(**case.get("beside", {}))
    with chdir(changed):
        workspace.change(**({section: {field: case["to"]}} if section else {leaf: case["to"]}))
    stages = STAGES[FIRST.get(section or leaf, 1) :]
    if "says" in case:
        with chdir(changed):
            refused(run, *STAGES[1:], says=case["says"])
        return
    # Evaluation and training read what the stages before them have made with the value that is not changed.
    for folder in (plain, changed):
        run_in(folder, *(STAGES[1 : FIRST[section]] if section in SECTIONS else []))
    for stage in stages:  # as few as show it
        if written_in(run_in(plain, stage)) != written_in(run_in(changed, stage)):
            return
    pytest.fail("it changes nothing")


def written_in(folder):
    with chdir(folder):
        found = digests("artifacts", "reports")
    return {path: digest for path, digest in found.items() if Path(path).name not in CARDS}


def test_examples_of_a_step_of_evaluation_are_as_many_as_its_batch_size(after):
    after()
    sizes = set()

    def note(module, given):
        if isinstance(module, torch.nn.Embedding):
            sizes.add(len(given[0]))

    for size in (128, 7):
        workspace.change(evaluate={"batch_size": size, "regression_baseline": "none"})
        sizes.clear()
        hook = register_module_forward_pre_hook(note)
        run(EVALUATE)
        hook.remove()
        assert max(sizes) == min(size, 40)  # of the test split


def test_processes_are_started_models_are_compiled_and_trackers_write(after, monkeypatch):
    folder = after()
    compiled, started = [], []
    monkeypatch.setattr(processes, "launch", lambda module, wanted: started.append((module, wanted)))
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    run(TRAIN)
    assert (compiled, started, (folder / "runs").exists()) == ([], [], False)
    workspace.change(train={"compile": True, "report_to": ["tensorboard"]})
    with patch.dict(os.environ):
        run(TRAIN)
    assert len(compiled) > 0
    assert list((folder / "runs").rglob("events.*"))
    workspace.change(train={"processes": 2})
    run(TRAIN)
    assert started == [("stages.train", 2)]
