"""The file of presets: what it holds is what it says, and a mistake in it is one line."""

from pathlib import Path

import pytest

from pipeline.arena import plan, preset, record, tuning
from pipeline.arena.compete import check
from pipeline.methods import planning
from tests import workspace
from tests.kit import refused
from tests.pipeline.arena import small

COMMITTED = workspace.read_yaml(workspace.ROOT / preset.PATH)
RATE = {"loha.learning_rate": 0.01}


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_presets_hold_all_trainings_of_the_committed_records(name, monkeypatch):
    """Where this fails, what a key hashes has changed: give the records their new keys in the same commit."""
    monkeypatch.chdir(workspace.ROOT)
    chosen = preset.load(name)
    assert "LoRA r=1" in chosen.methods
    assert len(chosen.seeds) >= 3
    records = record.read(record.FOLDER / name)
    planned = set()
    for entry in plan.entries(name, chosen):
        assert entry.first().view.seed == 0
        planning.configured(entry.first().view.section, 0, ["query"], ["classifier"])
        assert not records or tuning.missing(entry, records) == [], entry.title
        planned |= {training.key for trainings in tuning.steps(entry, records) for training in trainings}
    left = {one.method for key, one in records.items() if key not in planned}
    assert not left
    assert {one.method for one in records.values()} <= chosen.methods.keys()


ON_MEAN = {"method": "LoRA r=1", "expected": "better", "against": "head", "on": "mean"}
ALL = ["glue", "ratings", "comparisons"]
BROKEN = [
    ({"baseline": "LoRA r=3"}, "small: baseline: no 'LoRA r=3' here; did you mean LoRA r=1?"),
    ({"tuning": {"rates": [1.0, 1.0]}}, "small.tuning.rates: "),
    ({"rounded": [1, 7]}, "small: rounded: no '7' here"),
    ({"tests": 3}, "small.tests: no such key; did you mean tasks?"),
    ({"params": {"seed": 3}}, "params: seed is set by the arena itself"),
    ({"averages": {"main": ["glue", "rating"]}}, "averages: main: no 'rating' here; did you mean ratings?"),
    ({"averages": {"glue": ["glue", "ratings"]}}, "averages: glue is the name of a task"),
    ({"tasks": {"comparisons": {}}, "averages": {"main": ALL}}, "ratings and comparisons share their texts; keep"),
    ({"hypotheses": [ON_MEAN]}, "hypotheses: 1: on: no 'mean' here"),
]


@pytest.mark.parametrize(("changes", "says"), BROKEN)
def test_a_broken_preset_is_refused_in_a_line(changes, says, arena):
    small.use(**changes)
    assert refused(preset.load, "small", says=says).startswith(str(preset.PATH))


def test_keys_of_pinned_files_are_known_without_them_and_other_files_are_refused(arena, tmp_path):
    """Private data are not in the repository, their records are."""
    small.use(files={"ratings.csv": "0" * 64})
    [entry] = plan.entries("small", preset.load("small"), ["ratings: head"])
    refused(check, [entry], says="ratings.csv: not the file of the preset: its SHA-256 must be 0000")
    Path("ratings.csv").rename(tmp_path / "ratings.csv")
    [again] = plan.entries("small", preset.load("small"), ["ratings: head"])
    assert again.first().key == entry.first().key
    (tmp_path / "ratings.csv").rename("ratings.csv")


def odd(adapter, **params):
    return {"methods": {"odd": {"adapter": adapter, "params": params}}}


MISFITS = [
    ({"tasks": {"glu": {}}}, "no row 'glu'; did you mean glue?"),
    (odd("head", **{"train.epoch": 1}), "train.epoch: no such key; did you mean"),
    (odd("lora", **{"lora.target_modules": ["valeu"]}), "pipeline/arena.yaml: small.methods.odd: lora: "),
    (odd("loha", **{"loha.type": "LOHA", "loha.rr": 2, **RATE}), "odd: loha: rr: no such key; did you mean r?"),
    (odd("loha", **{"loha.r": 2}), "small.methods.odd.loha: no such key; the section of a method has a type"),
    ({"params": {"tokenize.max_length": 64}}, "pipeline/arena.yaml: small.tasks.glue: tokenize.max_length"),
    ({"reads": {"longest": 2}}, "no text of at most 2 tokens"),
]


@pytest.mark.parametrize(("changes", "says"), MISFITS)
def test_what_does_not_fit_is_said_before_anything_runs(changes, says, arena):
    small.use(**changes)
    refused(check, plan.entries("small", preset.load("small"), ["glu"]), says=says)
