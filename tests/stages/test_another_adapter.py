"""Another adapter's folder as a start: training goes on from its update."""

import shutil
from pathlib import Path

import pytest

from lsr import export_lora
from lsr.loading.adapters import load_onto
from pipeline import params
from pipeline.core import artifacts
from pipeline.methods import adapters
from tests import workspace
from tests.kit import refused, table
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, base_model, logits, run

SHARED = {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "core", "init": "warm"}
OTHER = "models/other"


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A workspace with tokens, and the fresh adapter of SHARED in models/other."""
    folder = workspace.make(tmp_path, lsr={**SHARED, "examples": 40, "head_steps": 5}, train={"epochs": 1})
    monkeypatch.chdir(folder)
    run(TOKENIZE, FACTORIZE)
    Path(OTHER).parent.mkdir()
    artifacts.INIT.rename(OTHER)
    return folder


@pytest.mark.parametrize("kind", ["LSR", "LORA"])
def test_training_goes_on_from_the_update_of_another_adapter(kind, other):
    if kind == "LORA":
        export_lora(Path(OTHER), Path("lora"))
        shutil.rmtree(OTHER)
        Path("lora").rename(OTHER)
    view = params.load(params.TrainView)
    expected = logits(load_onto(base_model(view), Path(OTHER)))
    workspace.change(lsr={"init": OTHER, "learning_rate": 0.1})
    run(TOKENIZE, FACTORIZE)
    begun = logits(adapters.load_adapter(base_model(view), artifacts.INIT, trainable=False))
    assert begun == pytest.approx(expected, abs=1e-5)
    assert {row["captured"] for row in table(artifacts.FACTORIZE_START)} == {"update"}
    run(TRAIN, EVALUATE)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"target_modules": ["query"]}, "lsr.init: models/other adapts "),
        ({"target_modules": ["query", "key", "value"]}, "lsr.init: models/other does not adapt "),
        ({"init": "models/nothing"}, "models/nothing"),
    ],
)
def test_an_adapter_from_which_nothing_can_go_on_is_refused_in_a_line(section, says, other):
    workspace.change(lsr={"init": OTHER, **section})
    refused(run, FACTORIZE, says=says)
    assert not artifacts.INIT.exists()
