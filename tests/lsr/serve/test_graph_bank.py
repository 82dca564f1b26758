"""`lsr serve --runtime onnx` answers over HTTP as plain PEFT does, each text alone, with the limits of a bank."""

import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lsr.__main__ import main as lsr
from tests import architectures
from tests.kit import MISTAKE, edit, refused, said
from tests.lsr.serve.asking import ask, posted, predict
from tests.lsr.serve.started import run_without_torch, started, started_without_torch
from tests.references.graphs import ARCHITECTURES, EXPORT, LABELS, plain, save_bert, save_lora, texts
from tests.references.test_graphs_of_banks import SLICES, TENANTS, save_graphs_of_a_bank
from tests.workspace import ROOT

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

LENGTH = 24  # tokens that the adapters read


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the graphs of a bank and of one adapter, and a function with probabilities of a text by tenant."""
    folder = tmp_path_factory.mktemp("served")
    model, tokenizer = save_graphs_of_a_bank(folder)

    @torch.no_grad()
    def probabilities(tenant, text):
        encoded = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        logits = model(**encoded).logits[0, SLICES[tenant]]
        return dict(zip(TENANTS[tenant], logits.softmax(0).tolist(), strict=True))

    asked = [text for text in texts() if tokenizer(text)["input_ids"]]
    assert any(len(tokenizer(text)["input_ids"]) > LENGTH for text in asked)
    return folder, probabilities, asked


@pytest.mark.parametrize(("runtime", "tolerance"), [("onnx", 1e-4), ("onnx-int8", 0.05)])
def test_a_server_answers_as_peft_does_alone(world, runtime, tolerance, tmp_path):
    folder, probabilities, asked = world
    with started(
        folder / "graph", tmp_path / "log", "--runtime", runtime, is_new=True
    ) as server:  # onnxruntime does not survive a fork
        address = f"http://127.0.0.1:{server.port}"
        answers = ask(posted(*(predict(name, *asked) for name in TENANTS)), address)
        alone = ask(posted(*(predict("bolt", text) for text in asked)), address)
    for name, answer in zip(TENANTS, answers, strict=True):
        for text, found in zip(asked, answer.json()["answers"], strict=True):
            expected = probabilities(name, text)
            assert found["probabilities"] == pytest.approx(expected, abs=tolerance)
            assert found["label"] == max(found["probabilities"], key=found["probabilities"].get)
    bolt = answers[list(TENANTS).index("bolt")].json()["answers"]
    differences = [
        abs(together["probabilities"]["mid"] - single.json()["answers"][0]["probabilities"]["mid"])
        for together, single in zip(bolt, alone, strict=True)
    ]
    assert max(differences) < (1e-5 if runtime == "onnx" else 1e-12)


def test_limits_are_those_of_a_bank_and_changes_are_refused_in_a_line(world, tmp_path, monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", "secret")
    folder, *_ = world
    with started(folder / "graph", tmp_path / "log", "--runtime", "onnx", "--strict", is_new=True) as server:
        address = f"http://127.0.0.1:{server.port}"

        async def call(client):
            headers = {"Authorization": "Bearer secret"}
            return [
                await client.post("/v1/predict", json={"adapter": "nobody", "texts": ["the cat"]}),
                await client.post("/v1/predict", json={"adapter": "acme", "texts": ["the cat " * 30]}),
                await client.post("/v1/predict", json={"adapter": "acme", "texts": [" "]}),
                await client.put("/v1/adapters/acme", headers=headers, files={"task.json": b"{}"}),
                await client.delete("/v1/adapters/acme", headers=headers),
                await client.get("/health"),
            ]

        responses = ask(call, address)
        log = server.log.read_text()
    reasons = [response.json().get("error", "") for response in responses]
    assert [response.status_code for response in responses] == [404, 422, 422, 422, 422, 200]
    assert f"this adapter reads at most {LENGTH}" in reasons[1]
    assert reasons[3] == reasons[4] == "the adapters of a graph do not change: export the bank again"
    assert responses[5].json() == {"status": "ok", "adapters": 3}
    assert "3 adapters; PUT and DELETE are disabled: graphs do not change" in log


MISTAKES = {
    "graph has no tokenizer.json": Path("graph/tokenizer.json").unlink,
    "graph has no onnx/model.onnx": Path("graph/onnx/model.onnx").unlink,
    "graph: acme: its task names 3 different labels, but its head has 2 outputs": lambda: edit(
        "graph/tenants.json", acme={"outputs": [0, 2], "task": {"labels": ["a", "b", "c"]}}
    ),
    "graph: acme: the graph has 7 outputs, but tenants.json names 9": lambda: edit(
        "graph/tenants.json", acme={"outputs": [7, 9], "task": {}}
    ),
    "max_length must be": lambda: edit("graph/tenants.json", acme={"outputs": [0, 2], "task": {"max_length": -1}}),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_folder_that_does_not_fit_is_a_line(world, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world[0] / "graph", "graph")
    MISTAKES[line]()
    refused(lsr, ["serve", "graph", "--runtime", "onnx", "--port", "0"], says=line)


def test_an_option_that_does_not_fit_a_runtime_is_refused(world, monkeypatch):
    monkeypatch.chdir(world[0])
    serve = ["serve", "graph", "--port", "0"]
    refused(lsr, serve, says="graph: holds graphs in ONNX; needed: --runtime onnx or onnx-int8")
    refused(lsr, [*serve, "--runtime", "onnx", "--base", "base"], says="--base: has no effect with --runtime onnx")
    refused(lsr, ["serve", "bank", "--port", "0", "--runtime", "onnx"], says="bank has no onnx/model.onnx")


def test_the_graphs_of_one_adapter_are_served_under_the_name_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_bert(1, {"kind": "number", "columns": ["text"]})
    said(lsr, "export", "lora", "--base", "base", "--to", "onnx", "-o", "stars")
    with started(tmp_path / "stars", tmp_path / "log", "--runtime", "onnx", is_new=True) as server:
        (answer,) = ask(posted(predict("stars", "the cat sleeps")), f"http://127.0.0.1:{server.port}")
    encoded = AutoTokenizer.from_pretrained("base")("the cat sleeps", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits[0].item()
    assert answer.json()["answers"][0]["number"] == pytest.approx(expected, abs=1e-4)


def ask_without_torch(folder, *requests):
    """Return the JSON of the answers of a server of graphs that cannot import torch."""
    with started_without_torch(folder, "--runtime", "onnx") as port:
        responses = ask(posted(*requests), f"http://127.0.0.1:{port}")
    assert [response.status_code for response in responses] == [200] * len(requests)
    return [response.json()["answers"] for response in responses]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_torch_a_server_answers_as_plain_transformers_does_to_each_text_alone(architecture, tmp_path):
    with chdir(tmp_path):
        architectures.save_padded(tmp_path / "base", architecture)
        save_lora(architecture)
        said(lsr, *EXPORT)
        counts = AutoTokenizer.from_pretrained("base")(texts())["input_ids"]
        asked = [text for text, ids in zip(texts(), counts, strict=True) if 0 < len(ids) <= LENGTH]
        expected = plain()(asked).softmax(1)
        (answers,) = ask_without_torch("graph", predict("graph", *asked))
    for answer, shares in zip(answers, expected.tolist(), strict=True):
        assert answer["probabilities"] == pytest.approx(dict(zip(LABELS, shares, strict=True)), abs=1e-4)
        assert answer["label"] == LABELS[max(range(len(LABELS)), key=shares.__getitem__)]


NOTES = {
    "one label": (1, {"labels": ["a"], "thresholds": [0.5]}),
    "multi-label": (3, {"labels": ["a", "b", "c"], "thresholds": [0.5, 0.4, 0.3]}),
    "number": (1, {"kind": "number"}),
    "pairs": (2, {"labels": ["no", "yes"], "columns": ["first", "second"]}),
    "threshold": (2, {"labels": ["no", "yes"], "threshold": 0.9}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", NOTES)
def test_so_it_does_for_each_task_type(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, task_info = NOTES[name]
    model = save_bert(outputs, task_info)
    said(lsr, *EXPORT)
    pair = ["the cat sleeps", "the owl in the barn"] if name == "pairs" else ["the cat sleeps"]
    encoded = AutoTokenizer.from_pretrained("base")(*pair, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0].double()
    ((answer,),) = ask_without_torch("graph", predict("graph", pair if name == "pairs" else pair[0]))
    if name == "number":
        assert answer == {"number": pytest.approx(logits.item(), abs=1e-4)}
        return
    labels = task_info["labels"]
    is_multi_label = "thresholds" in task_info
    shares = logits.sigmoid() if is_multi_label else logits.softmax(0)
    assert list(answer["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-4)
    if is_multi_label:
        reached = zip(labels, shares, task_info["thresholds"], strict=True)
        assert answer["labels"] == [label for label, share, threshold in reached if share >= threshold]
    else:
        number = int(shares[1] >= 0.9) if name == "threshold" else int(shares.argmax())
        assert answer["label"] == labels[number]


def test_where_torch_is_absent_mistakes_and_other_commands_are_a_line(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world[0] / "graph", "graph")
    serve = ["serve", "graph", "--port", "0"]
    says = {
        (*serve,): "lsr serve: graph: holds graphs in ONNX; needed: --runtime onnx or onnx-int8",
        (*serve, "--runtime", "onnx", "--base", "base"): "lsr serve: --base: has no effect with --runtime onnx",
        (*serve, "--runtime", "tflite"): "lsr serve: argument --runtime: invalid choice: 'tflite'",
        ("serve", "nothing", "--runtime", "onnx"): "lsr serve: --runtime onnx: nothing has no onnx/model.onnx",
        (*serve, "--runtime", "onnx", "--max-length", "4000"): "lsr serve: --max-length: the base model does not take",
    }
    edit("graph/tokenizer.json", truncation=None)
    for words, line in says.items():
        code, errors = run_without_torch(*words)
        assert (code, errors.count("\n")) == (MISTAKE, 1), errors
        assert errors.startswith(line)
    code, errors = run_without_torch("export", "adapter")
    assert (code, errors) == (1, "lsr: needs peft; without it, only graphs are served: --runtime onnx\n")


IMPORTING = """
import os, signal, sys

class Stop:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
from lsr_server.__main__ import script
sys.argv = ["lsr", "bank", "--from", "adapter", "-o", "bank"]
sys.exit(script())
"""


def test_ctrl_c_while_torch_is_imported_is_a_line():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IMPORTING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "stopped; no partial output was written\n")
