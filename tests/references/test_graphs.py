"""A graph in ONNX answers to each text as the adapter in plain transformers does, whatever else is in the batch.

The reference is that of test_padding.py: plain transformers in float32, the base model with the update added by hand,
each text alone and without padding. Graphs are run by ONNX Runtime on what the exported tokenizer makes.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.metrics import accuracy_score
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lsr.__main__ import main as lsr
from lsr.convert.graph import check_size
from lsr_onnx.graph import Graph
from pipeline import score
from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import architectures, workspace
from tests.kit import MISTAKE, digests, edit, refused, said, table, write
from tests.references.test_padding import LABELS, LENGTH, plain, save_lora, texts
from tests.workspace import ROOT

EXPORT = ("export", "lora", "--base", "base", "--to", "onnx", "-o", "graph")


def logits_of(graph, asked, pairs=None):
    """Return the logits (texts, labels) of a graph in the folder `graph` for texts, in one batch, as its users ask."""
    tokenizer = AutoTokenizer.from_pretrained("graph")
    encoded = tokenizer(asked, pairs, padding=True, truncation=True, return_tensors="np")
    session = onnxruntime.InferenceSession(f"graph/onnx/{graph}", providers=["CPUExecutionProvider"])
    names = [graph_input.name for graph_input in session.get_inputs()]
    (logits,) = session.run(["logits"], {name: encoded[name].astype(np.int64) for name in names})
    return torch.from_numpy(logits)


UNTRACED = {"xlnet"}  # by torch.export
QUICK = {"bert"}  # the others take some three seconds each
ARCHITECTURES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
    for name in architectures.PADDED
    if name not in UNTRACED
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request, tmp_path_factory):
    """A folder with the graphs of a LoRA on a model of an architecture, and plain transformers' logits."""
    folder = tmp_path_factory.mktemp(request.param)
    with chdir(folder):
        architectures.save_padded(folder / "base", request.param)
        save_lora(request.param)
        said(lsr, *EXPORT)
        return folder, plain()


def test_a_graph_answers_to_each_text_of_a_batch_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        expected = logits(texts())
        assert_close(logits_of("model.onnx", texts()), expected, atol=1e-4, rtol=0)
        assert_close(logits_of("model.onnx", texts()[:1]), expected[:1], atol=1e-4, rtol=0)
        quantized = logits_of("model_quantized.onnx", texts())
        assert 0 < float((quantized.softmax(1) - expected.softmax(1)).abs().max()) < 0.1
        config = AutoConfig.from_pretrained("graph")
        assert [config.id2label[number] for number in range(len(LABELS))] == LABELS
        assert config.problem_type == "single_label_classification"
        assert Path("graph/tokenizer.json").is_file()
        assert json.loads(Path("graph/task.json").read_text())["labels"] == LABELS


PREDICT = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "datasets", "lsr"])
from pipeline.predict.__main__ import main
main()
"""


def test_predict_answers_by_a_graph_without_torch_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        write("asked.csv", [{"text": text} for text in texts()])
        options = ["--adapter", "graph", "--runtime", "onnx", "--file", "asked.csv", "--batch-size", "7"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", PREDICT, *options]
        run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        found = [[float(row[f"p({label})"]) for label in LABELS] for row in table(run.stdout)]
        assert_close(torch.tensor(found), logits(texts()).softmax(1), atol=1e-4, rtol=0)
        counts = list(map(len, AutoTokenizer.from_pretrained("base")(texts())["input_ids"]))
        truncated = sum(count > LENGTH for count in counts)
        assert f"{truncated} of {len(texts())} texts truncated to {LENGTH} tokens" in run.stderr
        strict = subprocess.run([*words, "--strict"], env=environment, capture_output=True, text=True, check=False)
        assert strict.returncode == MISTAKE
        first = next(row for row, count in enumerate(counts, 1) if count > LENGTH)
        assert f"--strict: row {first}: the text has more than {LENGTH} tokens" in strict.stderr


def test_texts_of_similar_length_share_a_batch_and_answers_keep_their_order(world, monkeypatch):
    folder, logits = world
    monkeypatch.chdir(folder)
    shapes = []
    run = Graph.run

    def record(self, tokens):
        shapes.append(tokens["input_ids"].shape)
        return run(self, tokens)

    monkeypatch.setattr(Graph, "run", record)
    asked = ["the cat", "the cat sleeps in the garden and the owl in the barn"] * 2
    write("mixed.csv", [{"text": text} for text in asked])
    options = ["--adapter", "graph", "--runtime", "onnx", "--batch-size", "2", "--file", "mixed.csv"]
    rows = said(predict, *options).splitlines()[1:]
    first, second = [width for count, width in shapes if count == 2]
    assert first > second
    for row, text in zip(rows, asked, strict=True):
        found = [float(cell) for cell in row.split(",")[-len(LABELS) :]]
        assert found == pytest.approx(logits([text])[0].softmax(0).tolist(), abs=1e-4)


def test_an_answer_in_8_bits_does_not_depend_on_the_other_texts(world):
    folder, _ = world
    with chdir(folder):
        options = ["--adapter", "graph", "--runtime", "onnx-int8"]
        together = said(predict, *options, *texts()[:4]).splitlines()[1:]
        alone = [said(predict, *options, text).splitlines()[1] for text in texts()[:4]]
        assert together == alone
        says = "--batch-size: has no effect with --runtime onnx-int8, where each text passes alone"
        assert refused(predict, [*options, "a", "--batch-size", "2"]).endswith(says)


def save_bert(outputs, task_info):
    """Save a LoRA of BERT with a head of so many outputs, and its task info."""
    architectures.save_padded(Path("base"), "bert")
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=outputs, dtype=torch.float32)
    targets = ["query", "value"]
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained("lora")
    write("lora/task.json", {"max_length": 24} | task_info)
    return model


TASKS = {
    "one label": (1, {"labels": ["a"], "thresholds": [0.5]}, "multi_label_classification"),
    "multi-label": (3, {"labels": ["a", "b", "c"], "thresholds": [0.5, 0.4, 0.3]}, "multi_label_classification"),
    "number": (1, {"kind": "number"}, "regression"),
    "pairs": (2, {"labels": ["no", "yes"], "columns": ["first", "second"]}, "single_label_classification"),
}


@pytest.mark.parametrize("of_base", [None, "multi_label_classification"])
@pytest.mark.parametrize("name", ["number", "one label", "pairs"])
def test_the_pipeline_of_transformers_reads_a_merged_checkpoint_by_its_task(name, of_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, task_info, _ = TASKS[name]
    model = save_bert(outputs, task_info)
    edit("base/config.json", problem_type=of_base)
    said(lsr, "export", "lora", "--to", "merged", "-o", "merged", "--base", "base")
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained("base")("the cat", return_tensors="pt")).logits[0]
    expected = {"number": logits, "one label": logits.sigmoid(), "pairs": logits.softmax(0)}[name]
    (answers,) = pipeline("text-classification", "merged", top_k=None)(["the cat"])
    scores = [answer["score"] for answer in sorted(answers, key=lambda answer: answer["label"])]
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TASKS)
def test_so_do_those_of_each_task_type(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, task_info, problem_type = TASKS[name]
    model = save_bert(outputs, task_info)
    printed = said(lsr, *EXPORT)
    assert ("probabilities" in printed) == (name != "number")
    asked = texts()[:9]
    pairs = asked[::-1] if name == "pairs" else None
    tokenizer = AutoTokenizer.from_pretrained("base")
    expected = []
    for number, text in enumerate(asked):
        pair = None if pairs is None else pairs[number]
        encoded = tokenizer(text, pair, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**encoded).logits)
    assert_close(logits_of("model.onnx", asked, pairs), torch.cat(expected), atol=1e-4, rtol=0)
    assert json.loads(Path("graph/config.json").read_text())["problem_type"] == problem_type


def test_without_task_json_a_multi_label_base_model_makes_a_multi_label_graph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bert(1, {})
    Path("lora/task.json").unlink()
    edit("base/config.json", problem_type="multi_label_classification")
    assert "probabilities" in said(lsr, *EXPORT)
    assert json.loads(Path("graph/config.json").read_text())["problem_type"] == "multi_label_classification"


@pytest.mark.nightly
@pytest.mark.parametrize("name", UNTRACED)
def test_an_architecture_that_torch_cannot_trace_is_refused_in_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architectures.save_padded(tmp_path / "base", name)
    save_lora(name)
    refused(lsr, list(EXPORT), says=f"torch cannot trace the architecture {name}")
    assert not Path("graph").exists()


@pytest.mark.parametrize(("name", "layer"), [("bart", "q_proj"), ("t5", "q")])
def test_an_encoder_decoder_is_refused_in_a_line(name, layer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architectures.save(tmp_path / "base", name)
    base = AutoModelForSequenceClassification.from_pretrained("base")
    base.save_pretrained("base")  # with its head
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=[layer])).save_pretrained("lora")
    reason = f"{name} is an encoder-decoder, so it cannot be exported to ONNX; --to merged writes a single adapter"
    refused(lsr, list(EXPORT), says=reason)
    assert not Path("graph").exists()


def test_a_long_text_loses_the_end_that_its_tokenizer_cuts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_bert(2, {"kind": "classes", "labels": ["no", "yes"], "columns": ["text"]})
    edit("base/tokenizer_config.json", truncation_side="left")
    said(lsr, *EXPORT)
    text = "the owl sleeps in the barn and " * 9 + "the fox rests"
    tokenizer = AutoTokenizer.from_pretrained("base")
    assert tokenizer.truncation_side == "left"
    encoded = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.softmax(1)
    (row,) = table(said(predict, "--adapter", "graph", "--runtime", "onnx", text))
    assert [float(row["p(no)"]), float(row["p(yes)"])] == pytest.approx(expected[0].tolist(), abs=1e-4)


@pytest.mark.nightly
def test_the_same_adapter_gives_the_same_bytes_which_name_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bert(2, {"labels": ["no", "yes"]})
    said(lsr, *EXPORT)
    first = digests("graph")
    said(lsr, *EXPORT, "--force")
    assert digests("graph") == first
    assert b"site-packages" not in Path("graph/onnx/model.onnx").read_bytes()


def test_what_cannot_become_a_graph_is_refused_in_a_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bert(2, {"labels": ["no", "yes"]})
    refused(lsr, [*EXPORT, "--dtype", "float16"], says="--dtype float16 has no effect with --to onnx")
    write("lora/task.json", {"tenants": {"a": ["no", "yes"]}})
    refused(lsr, list(EXPORT), says="has tenants")
    write("lora/task.json", {"labels": ["no"]})
    refused(lsr, list(EXPORT), says="labels must be 2 different names")
    assert not Path("graph").exists()


def test_without_the_extra_an_export_is_refused_in_a_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bert(2, {"labels": ["no", "yes"]})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    before = sorted(tmp_path.rglob("*"))
    refused(
        lsr, list(EXPORT), says="onnxscript: not installed; in a clone of lsr-adapt: pip install -c constraints.txt"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_above_two_gigabytes_is_refused_in_a_line():
    large = torch.nn.Linear(25_000, 25_000, bias=False, device="meta")  # without memory
    says = "adapter: base model and adapter have 2.5 GB in float32, and a file of ONNX holds at most 2 GB"
    assert says in refused(check_size, large, Path("adapter"))


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_predict_and_serve_name_the_package_that_is_missing(graphs, package, monkeypatch):
    monkeypatch.chdir(graphs)
    monkeypatch.setitem(sys.modules, package, None)
    options = ["--runtime", "onnx"]
    says = f"needs {package}, which is not installed"
    refused(predict, ["--adapter", "graph", *options, "the cat"], says=says)
    refused(lsr, ["serve", "graph", *options, "--port", "0"], says=says)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A folder with the graphs of an adapter with two labels."""
    folder = tmp_path_factory.mktemp("graphs")
    with chdir(folder):
        save_bert(2, {"kind": "classes", "labels": ["no", "yes"], "columns": ["text"]})
        said(lsr, *EXPORT)
    return folder


def cut(name):
    def change():
        path = Path("graph") / name
        path.write_bytes(path.read_bytes()[:-100])

    return change


MISTAKES = {
    "graph/onnx/model.onnx: ": cut("onnx/model.onnx"),
    "graph/tokenizer.json: ": cut("tokenizer.json"),
    "graph/task.json: ": cut("task.json"),
    "graph: the graph has 2 outputs, but task.json names 3 labels": lambda: edit(
        "graph/task.json", labels=["a", "b", "c"]
    ),
    "graph: task.json: max_length must be a positive whole number": lambda: edit("graph/task.json", max_length=-1),
    "graph: task.json: columns must be a list of one, or of two for pairs": lambda: edit(
        "graph/task.json", columns=["a", "b", "c"]
    ),
    "graph: task.json: thresholds must be one for each label": lambda: edit("graph/task.json", thresholds=[0.5]),
    "--runtime onnx: graph has no tokenizer.json; needed: a folder that": Path("graph/tokenizer.json").unlink,
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_broken_folder_of_graphs_is_a_line(graphs, line, tmp_path, monkeypatch):
    shutil.copytree(graphs / "graph", tmp_path / "graph")
    monkeypatch.chdir(tmp_path)
    MISTAKES[line]()
    refused(predict, ["--adapter", "graph", "--runtime", "onnx", "the cat"], says=f"predict: {line}")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--adapter", "graph"], "graph: holds graphs in ONNX; needed: --runtime onnx or onnx-int8"),
        (["--adapter", "lora", "--runtime", "onnx"], "--runtime onnx: lora has no onnx/model.onnx"),
        (["--adapter", "graph", "--runtime", "onnx", "--base", "base"], "--base: has no effect with --runtime onnx"),
        (["--adapter", "graph", "--runtime", "tflite"], "argument --runtime: invalid choice: 'tflite'"),
        (["--adapter", "graph", "--runtime", "onnx", "--tenant", "a"], "--tenant: has no effect with --runtime onnx"),
    ],
)
def test_an_option_that_does_not_fit_a_runtime_is_refused(graphs, options, line, monkeypatch):
    monkeypatch.chdir(graphs)
    refused(predict, [*options, "the cat"], says=line)


def test_score_of_a_graph_is_that_of_scikit_learn_on_what_onnx_runtime_answers(after):
    after()
    said(lsr, "export", str(artifacts.ADAPTER), "--to", "onnx", "-o", "graph")
    *_, float32, quantized = said(score.main, "glue", "graph").splitlines()
    first, second, labels = zip(*workspace.sentences(200)[160:], strict=True)
    for line, name in ((float32, "model.onnx"), (quantized, "model_quantized.onnx")):
        logits = [logits_of(name, [left], [right]) for left, right in zip(first, second, strict=True)]
        answers = torch.cat(logits).argmax(1)
        path, size, accuracy, *_ = line.strip().split(" | ")
        assert path == f"graph/onnx/{name}"
        assert int(size.replace(",", "")) == Path(path).stat().st_size
        names = AutoConfig.from_pretrained("graph").id2label
        numbers = [int(names[int(answer)] == "equivalent") for answer in answers]
        assert float(accuracy) == pytest.approx(accuracy_score(labels, numbers), abs=1e-4)
