"""Frames around a core: what the stages make of every word of the family, and of frames from a folder."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lsr import export_lora
from lsr.init import INITIALIZATIONS, READERS
from lsr.loading.adapters import load_onto
from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters
from tests import workspace
from tests.kit import digests, write
from tests.stages.running import (
    EVALUATE,
    FACTORIZE,
    TOKENIZE,
    TRAIN,
    base_model,
    base_of,
    logits,
    report,
    run,
)

WIDTH, RANK, LAYERS = 24, 3, 2  # of the tiny model, whose queries and values are two kinds
FAMILY = {
    "rank_shape": [RANK],
    "separation_rank": 1,
    "share": "layers",
    "train": "core",
    "init": "gradient",
    "examples": 40,
    "head_steps": 5,
}
HELD = "models/family"


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A workspace with its tokens, and an adapter of FAMILY where others hold its frames."""
    folder = workspace.make(tmp_path_factory.mktemp("workspace"), lsr=FAMILY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(TOKENIZE, FACTORIZE)
        Path(HELD).parent.mkdir()
        artifacts.INIT.rename(HELD)
        shutil.rmtree("reports")
    return folder


@pytest.fixture
def at(tokenized, tmp_path, monkeypatch):
    """A function that goes to a copy of the workspace, and has `lsr` and other keys there as given."""
    folder = shutil.copytree(tokenized, tmp_path / "workspace")
    usual = workspace.read_yaml(folder / "params.yaml")

    def choose(lsr=None, **changes):
        content = workspace.merged(workspace.merged(usual, {"lsr": lsr or {}}), changes)
        write(folder / "params.yaml", content)
        monkeypatch.chdir(folder)

    monkeypatch.delenv("DVC_ROOT", raising=False)
    return choose


def table(path):
    return list(csv.DictReader(path.open(newline="")))


# Words


@pytest.mark.parametrize(
    ("train", "share", "init"),
    [
        ("core", "layers", "gradient"),
        ("all", "none", "update"),
        ("all", "layers", "warm"),
        ("core", "none", "principal"),
    ],
)
def test_every_word_starts_an_adapter_and_reports_its_frames(at, train, share, init):
    at({"train": train, "share": share, "init": init})
    run(FACTORIZE)
    view = params.load(params.TrainView)
    model = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=True)
    assert torch.equal(logits(model), logits(base_model(view))) == (init != "warm")

    counts = adapters.count_parameters(model, view.base_model)
    cores, frames = 2 * LAYERS * RANK**2, 2 * (1 if share == "layers" else LAYERS) * 2 * RANK * WIDTH
    assert counts["adapter_trained"] == cores + (frames if train == "all" else 0)
    assert counts["adapter_stored"] == cores + frames

    found = report(artifacts.FACTORIZE_METRICS)
    # Five steps of the head, then one pass over 40 examples, in batches of 32 for gradients, of 8 otherwise.
    passes = {"gradient": (7, (128, 152)), "update": (10, (80,)), "warm": (10, (80,)), "principal": (0, (0,))}
    batches, examples = passes[init]
    assert (found["start_batches"], found["start_read"] in examples) == (batches, True)
    read = INITIALIZATIONS[init].reads
    rows = table(artifacts.FACTORIZE_START)
    assert len(rows) == (2 if share == "layers" else 2 * LAYERS)
    assert {row["captured"] for row in rows} == {read if read in READERS else "weight"}
    assert found["energy"] == pytest.approx(np.mean([float(row["energy"]) for row in rows]), rel=1e-5)
    for row in rows:
        assert 0 < float(row["energy"]) <= float(row["energy_best"]) + 1e-6

    first = digests(artifacts.INIT) | digests("reports")
    run(FACTORIZE)
    assert digests(artifacts.INIT) | digests("reports") == first


# Folders of frames


def test_an_adapter_that_holds_frames_is_a_core_alone_through_all_stages(at):
    at({})
    run(FACTORIZE)
    shutil.rmtree(HELD)
    artifacts.INIT.rename(HELD)
    at({"frames": HELD, "learning_rate": 0.1})
    run(FACTORIZE, TRAIN, EVALUATE)
    weights = load_file(artifacts.ADAPTER / WEIGHTS)
    stored = {name: value for name, value in weights.items() if ".classifier." not in name}
    assert len(stored) == 2 * LAYERS
    assert all(name.endswith(".core") and value.abs().max() > 1e-3 for name, value in stored.items())
    found, cores = report(artifacts.EVALUATE_METRICS), 2 * LAYERS * RANK**2
    assert found["adapter_trained"] == found["adapter_stored"] == cores
    assert table(artifacts.FACTORIZE_START) == []

    view = params.load(params.EvaluateView)
    expected = logits(adapters.load_adapter(base_of(view), artifacts.ADAPTER, trainable=False))
    export_lora(artifacts.ADAPTER, Path("lora"))
    shutil.rmtree(HELD)  # what is exported needs no frames
    plain = PeftModel.from_pretrained(base_of(view), "lora")
    assert logits(plain) == pytest.approx(expected, abs=1e-5)


# Another adapter


@pytest.mark.parametrize("kind", ["LSR", "LORA"])
def test_training_goes_on_from_another_adapter(kind, at):
    at({"init": "warm"})
    run(FACTORIZE)
    source = Path("models/source")
    if kind == "LORA":
        export_lora(artifacts.INIT, source)
    else:
        artifacts.INIT.rename(source)
    view = params.load(params.TrainView)
    expected = logits(load_onto(base_model(view), source))
    at({"init": "models/source", "learning_rate": 0.1})
    run(TOKENIZE, FACTORIZE)
    assert "models/source/adapter_config.json" in report(artifacts.INPUTS)
    begun = logits(adapters.load_adapter(base_model(view), artifacts.INIT, trainable=False))
    assert begun == pytest.approx(expected, abs=1e-5)
    assert {row["captured"] for row in table(artifacts.FACTORIZE_START)} == {"update"}
    run(TRAIN, EVALUATE)
    for changes, message in (
        ({"target_modules": ["query"]}, "lsr.init: models/source adapts "),
        ({"target_modules": ["query", "key", "value"]}, "lsr.init: models/source does not adapt "),
        ({"frames": HELD}, "an adapter to go on from needs frames: own"),
        ({"init": "models/nothing"}, "models/nothing"),
        ({"init": "wram"}, "or string should match pattern '/', got 'wram'; did you mean warm?"),
    ):
        at({"init": "models/source", **changes})
        with pytest.raises(UserError, match=re.escape(message)):
            run(FACTORIZE)
