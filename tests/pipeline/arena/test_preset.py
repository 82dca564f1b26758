"""The file of presets: what it holds is what it says, and a mistake in it is one line."""

from pathlib import Path

import pytest

from pipeline.arena import check, plan, preset
from pipeline.core.errors import UserError
from tests import workspace
from tests.pipeline.arena import small

COMMITTED = workspace.read_yaml(workspace.ROOT / preset.PATH)
BASELINES = {"head", "LoRA r=1", "LoRA r=2", "LoRA r=8"}


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_presets_are_valid_and_hold_the_ranks_that_every_table_needs(name, monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    found = preset.load(name)
    assert found.methods.keys() >= BASELINES
    assert len(found.seeds) >= 5
    for run in plan.runs(name, found):
        assert run.cell(1.0, 1.0, 0).view().seed == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline": "LoRA r=3"}, ["small: baseline: no method", "did you mean LoRA r=1?", "methods: "]),
        ({"tuning": {"rates": []}}, ["small.tuning.rates", "a list of at least 1"]),
        ({"tuning": {"rates": [1.0, 1.0]}}, ["small.tuning.rates", "must differ"]),
        ({"seeds": [True]}, ["small.seeds", "integer"]),
        ({"tests": 3}, ["small.tests: no such key", "did you mean tasks?"]),
        ({"params": {"seed": 3}}, ["params: seed is set by the arena itself"]),
        ({"methods": {"a/b": {"adapter": "head"}}}, ["methods"]),
        ({"reads": {"train": 0}}, ["small.reads.train", "all"]),
    ],
)
def test_a_broken_preset_is_refused_in_a_line(changes, words, arena):
    small.write(**changes)
    with pytest.raises(UserError) as error:
        preset.load("small")
    assert all(word in str(error.value) for word in (str(preset.PATH), *words)), str(error.value)


def test_an_unknown_preset_is_told_from_those_there_are(arena):
    with pytest.raises(UserError, match="no preset 'smal'; did you mean small\\?; presets: small"):
        preset.load("smal")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {"glu": {}}}, ["no row 'glu'", "did you mean glue?"]),
        ({"model": "tinny"}, ["no row 'tinny'", "did you mean tiny?"]),
        ({"methods": {"head": {"adapter": "heads"}}}, ["heads"]),
        ({"methods": {"head": {"adapter": "head", "params": {"train.epoch": 1}}}}, ["train.epoch", "epochs?"]),
        ({"methods": {"odd": {"adapter": "lora", "params": {"lora.r": 0}}}}, ["methods.odd", "lora.r", "got 0"]),
        ({"methods": {"odd": {"adapter": "lora", "params": {"model.r": 0}}}}, ["model of params.yaml has no keys"]),
        (
            {"methods": {"odd": {"adapter": "lora", "params": {"lora.target_modules": ["valeu"]}}}},
            ["pipeline/arena.yaml: small.methods.odd: lora: ", "valeu"],
        ),
        (
            {"params": {"tokenize.max_length": 64}},
            ["pipeline/arena.yaml: small.tasks.glue: tokenize.max_length", "at most 30"],
        ),
        ({"reads": {"longest": 2}}, ["no text of at most 2 tokens", "longest"]),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(changes, words, arena):
    small.write(**changes)
    with pytest.raises(UserError) as error:
        check.check(plan.runs("small", preset.load("small")))
    assert all(word in str(error.value) for word in words), str(error.value)


def broken(content="first,second,answer\na cat,a dog,yes\n", **changes):
    """A row of pairs whose file or keys do not fit."""
    Path("broken.csv").write_text(content, encoding="utf-8")
    row = {
        "source": {"kind": "files", "files": {"train": "broken.csv"}},
        "text": ["first", "second"],
        "label": {"column": "answer", "names": ["no", "yes"]},
        "metrics": ["accuracy"],
        "cut": {"validation": 0.2, "test": 0.2},
    }
    return row | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": ["first", "third"]}, ["broken", "third", "first, second, answer"]),
        ({"label": {"column": "answer", "names": ["no", "maybe"]}}, ["broken", "yes", "no, maybe"]),
        ({"label": {"column": "answer", "low": 0.0, "high": 1.0}}, ["broken: metrics", "accuracy", "pearson"]),
        ({"content": "first;second;answer\na cat;a dog;yes\n"}, ["broken", "first"]),
        ({}, ["broken", "is empty"]),
    ],
)
def test_a_task_that_cannot_be_read_names_its_row_before_anything_runs(changes, words, arena):
    table = arena / "pipeline/datasets.yaml"
    before = table.read_bytes()
    workspace.write_yaml(table, workspace.read_yaml(table) | {"broken": broken(**changes)})
    small.write(tasks={"broken": {}})
    try:
        with pytest.raises(UserError) as error:
            check.check(plan.runs("small", preset.load("small"), ["broken"]))
    finally:
        table.write_bytes(before)
    assert all(word in str(error.value) for word in ("pipeline/datasets.yaml", *words)), str(error.value)
