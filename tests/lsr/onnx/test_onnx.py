"""`lsr export --to onnx`: its graphs against plain transformers of each text alone.

Graphs run as the documentation shows, by ONNX Runtime in a process that cannot import torch.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from peft import LoraConfig
from playwright.sync_api import sync_playwright
from transformers import AutoConfig, AutoTokenizer, pipeline

from lsr import LsrConfig
from tests import helpers, reference, rows, tiny

CLOSE = 1e-5
OF_8_BITS = 0.1  # norm of the difference of logits, relative to that of the logits
MAX_LENGTH = 24
WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "peft", "lsr"])
"""
RUN = """
import json
import numpy, onnxruntime, tokenizers
tokenizer = tokenizers.Tokenizer.from_file("graph/tokenizer.json")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
logits = []
for texts in json.load(sys.stdin):
    encoded = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in texts])
    inputs = {
        "input_ids": [text.ids for text in encoded],
        "attention_mask": [text.attention_mask for text in encoded],
        "token_type_ids": [text.type_ids for text in encoded],
    }
    arrays = {wanted.name: numpy.array(inputs[wanted.name]) for wanted in session.get_inputs()}
    logits += session.run(["logits"], arrays)[0].tolist()
print(json.dumps(logits))
"""


class Case(NamedTuple):
    """An adapter to export: its architecture, its outputs, and what its task.json says."""

    architecture: str
    outputs: int
    task: dict[str, Any]
    problem: str = "single_label_classification"
    is_lsr: bool = False
    truncation_side: str = "right"


TWO = {"labels": ["no", "yes"]}
THREE = {"labels": ["low", "mid", "high"]}
TAGS = {"labels": ["a", "b", "c"], "kind": "multi_label", "thresholds": [0.5, 0.4, 0.3]}
ONE = {"labels": ["a"], "kind": "multi_label", "thresholds": [0.5]}
NUMBER = {"labels": None, "kind": "number"}
CASES = {
    "bert, pairs": Case("bert", 2, TWO | {"columns": ["text", "other"]}),
    "roberta, multi-label": Case("roberta", 3, TAGS, "multi_label_classification", is_lsr=True),
    "distilbert, number": Case("distilbert", 1, NUMBER, "regression", truncation_side="left"),
}
NIGHTLY = {
    "bert, one label": Case("bert", 1, ONE, "multi_label_classification"),
    "modernbert": Case("modernbert", 3, THREE, is_lsr=True),
    "deberta-v2": Case("deberta-v2", 3, THREE),
    "gpt2": Case("gpt2", 3, THREE),
    "llama": Case("llama", 3, THREE, is_lsr=True),
    "qwen2": Case("qwen2", 3, THREE),
    "qwen3": Case("qwen3", 3, THREE),
    "gemma": Case("gemma", 3, THREE),
}


def save(folder, case):
    """Save a base model and an adapter of it, and return the adapter's folder."""
    made = tiny.ARCHITECTURES[case.architecture]
    options = {"task_type": "SEQ_CLS", "target_modules": made.targets, "modules_to_save": made.heads}
    config = LsrConfig(rank_shape=(2, 2), separation_rank=2, **options) if case.is_lsr else LoraConfig(r=2, **options)
    tiny.save_base(folder / "base", case.architecture)
    helpers.edit(folder / "base/tokenizer_config.json", truncation_side=case.truncation_side)
    task = {"max_length": MAX_LENGTH} | case.task
    labels = [str(number) for number in range(case.outputs)]
    adapter = tiny.save_adapter(folder / "adapter", folder / "base", config, labels=labels)
    helpers.edit(adapter / "task.json", **task)
    helpers.edit(adapter / "adapter_model.safetensors", soften)
    return adapter


def soften(tensors):
    """Return smaller values: with large ones, rounding of the first layers is multiplied by each further one."""
    return {name: 0.3 * tensor for name, tensor in tensors.items()}


def words_of(folder):
    """Return the words of a command that exports the adapter of a folder as graphs beside it."""
    return ["export", folder / "adapter", "--base", folder / "base", "--to", "onnx", "-o", folder / "graph"]


def run_without_torch(folder, code, *words, **options):
    """Run Python in a folder and a process that cannot import torch; return what it prints."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def logits_of(folder, graph, *batches):
    """Return the logits of texts, or pairs, by a graph, batch after batch."""
    return np.array(json.loads(run_without_torch(folder, RUN, f"graph/onnx/{graph}", input=json.dumps(batches))))


def load_alone(folder, case):
    """Return the base model with the adapter in plain transformers, and its tokenizer."""
    model = reference.load_alone(folder / "base", folder / "adapter", case.outputs)
    return model, AutoTokenizer.from_pretrained(folder / "base")


def texts_of(case):
    """Return short and long texts, or pairs of them."""
    short = ["a", "the cat", "東京 <s>"]
    texts = [*short, *(row["text"] for row in rows.examples(8)), "the owl sleeps in the barn " * 9]
    if len(case.task.get("columns", ["text"])) == 1:
        return [(text,) for text in texts]
    return [(text, other) for text, other in zip(texts, reversed(texts), strict=True)]


@pytest.fixture(scope="module", params=[*CASES, *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)])
def exported(request, tmp_path_factory):
    """A folder with an exported adapter, and its case."""
    case = (CASES | NIGHTLY)[request.param]
    folder = tmp_path_factory.mktemp("exported")
    save(folder, case)
    helpers.printed("lsr", *words_of(folder))
    return folder, case


def test_a_graph_answers_to_texts_alone_and_in_a_batch_as_plain_transformers_does_alone(exported):
    folder, case = exported
    texts = texts_of(case)
    expected = reference.logits_alone(*load_alone(folder, case), texts, MAX_LENGTH).numpy()
    alone = [[text] for text in texts]
    logits = logits_of(folder, "model.onnx", texts, *alone)
    np.testing.assert_allclose(logits, np.concatenate([expected, expected]), atol=CLOSE, rtol=0)
    quantized = logits_of(folder, "model_quantized.onnx", texts, *alone)
    difference = np.linalg.norm(quantized - logits) / np.linalg.norm(logits)
    assert 0 < difference < OF_8_BITS


def test_the_folder_names_labels_and_problem_as_transformers_reads_them(exported):
    folder, case = exported
    config = AutoConfig.from_pretrained(folder / "graph")
    assert config.problem_type == case.problem
    if case.task["labels"] is not None:
        assert config.id2label == dict(enumerate(case.task["labels"]))
    assert helpers.read_json(folder / "graph/task.json") == helpers.read_json(folder / "adapter/task.json")


@pytest.mark.parametrize("exported", ["roberta, multi-label"], indirect=True)
def test_the_python_of_the_documentation_runs_without_torch(exported):
    folder, case = exported
    page = (helpers.ROOT / "docs/how-to/onnx.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (text,) = re.findall(r'encode_batch\(\["(.*?)"\]\)', code)
    printed = run_without_torch(folder, code.replace("build/onnx", "graph"))
    expected = reference.logits_alone(*load_alone(folder, case), [(text,)], MAX_LENGTH).softmax(dim=1)
    chances = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    assert chances == pytest.approx(expected[0].tolist(), abs=OF_8_BITS / 2)


@pytest.mark.nightly
def test_the_same_adapter_gives_the_same_bytes_which_name_no_folder_of_this_machine(tmp_path):
    save(tmp_path, Case("bert", 2, TWO))
    helpers.printed("lsr", *words_of(tmp_path))
    first = helpers.digests(tmp_path / "graph")
    helpers.printed("lsr", *words_of(tmp_path), "--force")
    assert helpers.digests(tmp_path / "graph") == first
    assert b"site-packages" not in (tmp_path / "graph/onnx/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("case", "words", "says"),
    [
        (Case("t5", 2, TWO), [], "t5"),
        pytest.param(Case("xlnet", 2, TWO), [], "xlnet", marks=pytest.mark.nightly),
        (Case("bert", 2, TWO), ["--dtype", "float16"], "--dtype"),
        (Case("bert", 2, {"labels": ["no"]}), [], "labels"),
        (Case("bert", 2, {"labels": None, "tenants": {"a": ["no", "yes"]}}), [], "tenants"),
    ],
)
def test_what_cannot_become_a_graph_is_rejected_and_nothing_is_written(case, words, says, tmp_path):
    save(tmp_path, case)
    helpers.refused("lsr", *words_of(tmp_path), *words, says=says)
    assert not (tmp_path / "graph").exists()


def test_a_language_model_is_rejected(tmp_path):
    tiny.save_base(tmp_path / "base", "gpt2", causal=True)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    tiny.save_adapter(tmp_path / "adapter", tmp_path / "base", config)
    helpers.refused("lsr", *words_of(tmp_path), says="CAUSAL_LM")


def test_a_folder_that_exists_is_kept(tmp_path):
    save(tmp_path, Case("bert", 2, TWO))
    kept = helpers.write(tmp_path / "graph/mine.json", {})
    helpers.refused("lsr", *words_of(tmp_path), says="--force")
    assert helpers.digests(tmp_path / "graph").keys() == {kept.as_posix()}


@pytest.mark.parametrize("case", [*CASES.values(), NIGHTLY["bert, one label"]])
def test_the_pipeline_of_transformers_reads_a_merged_checkpoint_by_its_task(case, tmp_path):
    save(tmp_path, case)
    tags = "multi_label_classification"
    helpers.edit(tmp_path / "base/config.json", problem_type=None if case.problem == tags else tags)
    words = words_of(tmp_path)
    helpers.printed("lsr", *("merged" if word == "onnx" else word for word in words))
    logits = reference.logits_alone(*load_alone(tmp_path, case), [("the cat",)], MAX_LENGTH)
    is_number = case.task["labels"] is None
    expected = logits if is_number else reference.probabilities_of(logits.numpy(), case.task.get("kind"))
    (answers,) = pipeline("text-classification", str(tmp_path / "graph"), top_k=None)(["the cat"])
    scores = [answer["score"] for answer in sorted(answers, key=lambda answer: answer["label"])]
    in_order = np.argsort(case.task["labels"] or ["value"])
    assert scores == pytest.approx(expected[0][in_order].tolist(), abs=CLOSE)


@pytest.mark.nightly
def test_an_export_answers_in_a_browser_as_the_adapter_does_and_asks_nobody_else(tmp_path):
    case = Case("bert", 2, TWO)
    save(tmp_path, case)
    helpers.printed("lsr", *words_of(tmp_path))
    build = helpers.ROOT / "examples/browser/build.py"
    helpers.in_new_process(tmp_path, build, "graph", "-o", "site")
    text = "the cat sleeps in the garden"
    logits = reference.logits_alone(*load_alone(tmp_path, case), [(text,)], MAX_LENGTH)
    expected = dict(zip(case.task["labels"], logits.softmax(dim=1)[0].tolist(), strict=True))
    asked = []
    with serve_files(tmp_path / "site") as address, open_browser() as browser:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto(address)
        page.fill("#text", text, timeout=60_000)
        page.wait_for_function("document.getElementById('state').textContent.startsWith('answered')")
        label = page.inner_text("#label")
        labels = page.locator("#answer th").all_inner_texts()
        chances = [float(chance) for chance in page.locator("#answer td.share").all_inner_texts()]
    assert label == max(expected, key=expected.get)
    assert dict(zip(labels, chances, strict=True)) == pytest.approx(expected, abs=OF_8_BITS / 2)
    assert all(url.startswith((address, "data:")) for url in asked), asked


@contextmanager
def serve_files(folder):
    """Yield the address at which a web server has the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def open_browser():
    """Yield the system's Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
