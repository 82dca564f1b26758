"""A method is a section and a row: what the table says is what trains, is saved, counted and merged."""

import copy
import csv
import io
import json

import pytest
import torch
from peft import LoHaConfig
from pydantic import PositiveFloat, PositiveInt
from safetensors.torch import load_file

from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models, table
from pipeline.params import MethodParams, Targets, reading, schema
from pipeline.predict import __main__ as predict
from stages import evaluate, factorize_init, tokenize, train
from tests import workspace


class LohaParams(MethodParams):
    word = "loha"

    r: PositiveInt
    alpha: PositiveInt
    target_modules: Targets
    learning_rate: PositiveFloat


ROW = table.Method(LoHaConfig)
VALUES = {"r": 2, "alpha": 2, "target_modules": "default", "learning_rate": 0.05}
STAGES = (
    (tokenize, params.TokenizeView),
    (factorize_init, params.FactorizeInitView),
    (train, params.TrainView),
    (evaluate, params.EvaluateView),
)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A function that makes the workspace with a chosen adapter, and goes there."""

    def make(adapter, **section):
        workspace.make(tmp_path, evaluate={"export": ["merged"]})
        path = tmp_path / "params.yaml"
        content = workspace.read_yaml(path)
        changes = {"adapter": adapter, adapter: {**content.get(adapter, {}), **section}}
        workspace.write_yaml(path, {**content, **changes})
        monkeypatch.chdir(tmp_path)

    monkeypatch.delenv("DVC_ROOT", raising=False)
    return make


def fresh():
    """The chosen adapter on the tiny model, and what the training sees of params.yaml."""
    view = params.load(params.TrainView)
    torch.manual_seed(0)
    base = base_models.load_base_model(view.base_model, view.dataset)
    return adapters.add_adapter(base, view.section, view.base_model, 0), view


def test_a_section_and_a_row_make_a_method_that_goes_through_all_stages(at, monkeypatch, capsys):
    monkeypatch.setitem(params.ADAPTERS, "loha", LohaParams)
    monkeypatch.setitem(table.METHODS, LohaParams, ROW)
    monkeypatch.setattr(reading, "Params", schema.with_methods())
    at("loha", **VALUES)
    for stage, view in STAGES:
        stage.main(params.load(view))
    before, after = (load_file(folder / adapters.WEIGHTS) for folder in (artifacts.INIT, artifacts.ADAPTER))
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    found = json.loads(artifacts.EVALUATE_METRICS.read_text())
    assert found["merge_difference"] < 1e-5
    assert json.loads((artifacts.EXPORTS / artifacts.PARITY).read_text())["merged"] < 1e-5
    assert found["adapter_trained"] == found["adapter_stored"] == found["adapter_effective"] > 0
    assert sum(value.numel() for value in after.values()) == found["adapter_stored"] + found["head_parameters"]
    capsys.readouterr()
    assert predict.main(["--file", str(artifacts.EVALUATE_PREDICTIONS), "--column", "text", "text_pair"]) == 0
    said = csv.DictReader(io.StringIO(capsys.readouterr().out))
    scored = csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline=""))
    assert [row["label"] for row in said] == [row["predicted"] for row in scored]


def test_a_mistake_in_the_section_of_a_new_method_is_one_line(at, monkeypatch):
    monkeypatch.setitem(params.ADAPTERS, "loha", LohaParams)
    monkeypatch.setattr(reading, "Params", schema.with_methods())
    at("loha", **VALUES | {"learning_rate": -1})
    with pytest.raises(UserError) as error:
        params.load(params.TrainView)
    assert str(error.value) == "params.yaml: loha.learning_rate: input should be greater than 0, got -1"


@pytest.mark.parametrize("word", workspace.MAIN)
def test_what_trains_is_what_requires_grad_and_what_is_stored_is_in_the_file(at, tmp_path, word):
    at(word)
    model, view = fresh()
    found = adapters.count_parameters(model, view.base_model)
    (tmp_path / "saved").mkdir()
    adapters.save_adapter(model, tmp_path / "saved", view.base_model)
    saved = load_file(tmp_path / "saved" / adapters.WEIGHTS)
    classifier = model.get_base_model().classifier.modules_to_save["default"]
    head = sum(value.numel() for value in classifier.parameters())
    assert found["head_parameters"] == head
    assert found["adapter_trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad) - head
    assert found["adapter_stored"] == sum(value.numel() for value in saved.values()) - head
    assert found["adapter_effective"] >= found["adapter_trained"]
    assert (found["adapter_trained"] == 0) == (word == "head")
    base = base_models.load_base_model(view.base_model, view.dataset)
    assert found["base_parameters"] == sum(value.numel() for value in base.roberta.parameters())


def test_the_default_adapter_is_shared_by_the_layers_of_a_kind(monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    model, view = fresh()
    found = adapters.count_parameters(model, view.base_model)
    kinds, layers, width, rank = 2, 6, 384, 3
    assert found["adapter_trained"] == kinds * (2 * rank * width + layers * rank**2) == 4716
    assert found["adapter_trained"] == found["adapter_stored"] == found["adapter_effective"]
    assert view.section.reads_examples


def test_a_layer_that_is_called_like_the_head_is_no_head(at):
    at("lora", target_modules=["query"])
    model, view = fresh()
    before = adapters.count_parameters(model, view.base_model)
    layer = model.get_base_model().roberta.encoder.layer[0]
    layer.classifier = copy.deepcopy(layer.output)  # frozen, as all of the base model
    found = adapters.count_parameters(model, view.base_model)
    extra = sum(parameter.numel() for parameter in layer.classifier.parameters())
    assert found == {**before, "base_parameters": before["base_parameters"] + extra}


def test_an_adapter_that_does_not_train_is_not_counted(at):
    at("lsr")
    model, view = fresh()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing requires grad: load the adapter with trainable=True"):
        adapters.count_parameters(model, view.base_model)


@pytest.mark.parametrize("word", workspace.MAIN)
def test_merging_for_a_while_leaves_no_trace(at, word):
    at(word)
    model, _ = fresh()
    before = copy.deepcopy(model.state_dict())
    with adapters.merged(model):
        is_merged = any(getattr(module, "merged", False) for module in model.modules())
    assert is_merged == (word == "lsr")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
