"""What docs/how-to/onnx.md shows runs without torch, and its page answers in a browser as the adapter does in PEFT."""

import re
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer

from lsr.__main__ import main as lsr
from tests.browser import chromium
from tests.kit import edit, said, write
from tests.references.test_graphs import save_bert
from tests.references.test_graphs_of_banks import NOTE, SLICES, TENANTS
from tests.workspace import ROOT

WITHOUT_TORCH = "import sys\nsys.modules |= dict.fromkeys(['torch', 'transformers', 'lsr'])\n"
QUANTIZED = 0.02  # of a probability, by weights in 8 bits


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An adapter of BERT for two labels, whose graphs are at build/onnx of the working folder."""
    monkeypatch.chdir(tmp_path)
    model = save_bert(2, {"labels": ["no", "yes"], "columns": ["text"]})
    said(lsr, "export", "lora", "--base", "base", "--to", "onnx", "-o", "build/onnx")
    return model


@torch.no_grad()
def probabilities(model, text):
    encoded = AutoTokenizer.from_pretrained("base")(text, truncation=True, max_length=24, return_tensors="pt")
    return model(**encoded).logits[0].softmax(0).tolist()


def test_the_python_of_the_page_runs_without_torch(model):
    page = (ROOT / "docs/how-to/onnx.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write("shown.py", WITHOUT_TORCH + code)
    run = subprocess.run([sys.executable, "shown.py"], capture_output=True, text=True, check=True)
    shares = [float(number) for number in re.findall(r"\d\.\d+", run.stdout)]
    (texts,) = re.findall(r"encode_batch\(\[(.*?)\]\)", code)
    expected = [share for text in re.findall('"(.*?)"', texts) for share in probabilities(model, text)]
    assert shares == pytest.approx(expected, abs=QUANTIZED)


@contextmanager
def served(folder):
    """Yield the address at which a web server has the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def build_page():
    """Build the page of the graphs in build/onnx."""
    build = [sys.executable, ROOT / "examples/browser/build.py", "build/onnx", "-o", "build/browser"]
    subprocess.run(build, check=True)


def ask_page(page, text):
    """Type a text; return the answer, the share of each label, and the milliseconds that it took."""
    page.fill("#text", text, timeout=60_000)
    page.wait_for_function("document.getElementById('state').textContent.startsWith('answered')")
    page.wait_for_timeout(500)
    labels = page.locator("#answer th").all_inner_texts()
    shares = [float(share) for share in page.locator("#answer td.share").all_inner_texts()]
    (milliseconds,) = re.findall(r"answered in (\d+) ms", page.inner_text("#state"))
    return page.inner_text("#label"), dict(zip(labels, shares, strict=True)), int(milliseconds)


@pytest.mark.nightly
def test_the_page_answers_in_a_browser_as_the_adapter_does_and_asks_nobody_else(model, record_property):
    build_page()
    asked = []
    times = []
    with chromium() as browser, served("build/browser") as address:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto(address)
        for text in ("the cat sleeps in the garden", "x"):
            answer, shares, milliseconds = ask_page(page, text)
            expected = dict(zip(["no", "yes"], probabilities(model, text), strict=True))
            assert shares == pytest.approx(expected, abs=QUANTIZED)
            assert answer == max(expected, key=expected.get)
            times.append(milliseconds)
        page.fill("#text", " ")
        assert page.inner_text("#state") == "type a text"
        assert page.inner_text("#label") == ""
    record_property("milliseconds per sentence", times)
    assert all(url.startswith((address, "data:")) for url in asked), asked


@pytest.mark.nightly
def test_the_page_answers_by_the_threshold_of_the_second_of_two_labels(model):
    text = "the cat sleeps in the garden"
    _, second = probabilities(model, text)
    with chromium() as browser:
        for threshold, label in ((second - 0.1, "yes"), (second + 0.1, "no")):
            edit("build/onnx/task.json", threshold=threshold)
            build_page()
            with served("build/browser") as address:
                page = browser.new_page()
                page.goto(address)
                answer, shares, _ = ask_page(page, text)
            assert shares["yes"] == pytest.approx(second, abs=QUANTIZED)
            assert answer == label
            assert page.locator("#answer tr.chosen th").all_inner_texts() == [label]


@pytest.mark.nightly
def test_the_page_of_multi_label_answers_by_the_threshold_of_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a", "b", "c"]
    model = save_bert(3, {"labels": names, "thresholds": [0.5] * 3, "columns": ["text"]})
    said(lsr, "export", "lora", "--base", "base", "--to", "onnx", "-o", "build/onnx")
    text = "the cat sleeps in the garden"
    encoded = AutoTokenizer.from_pretrained("base")(text, return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits[0].sigmoid().tolist()
    edit("build/onnx/task.json", thresholds=[expected[0] - 0.1, expected[1] + 0.1, expected[2] - 0.1])
    build_page()
    with chromium() as browser, served("build/browser") as address:
        page = browser.new_page()
        page.goto(address)
        answer, shares, _ = ask_page(page, text)
    assert shares == pytest.approx(dict(zip(names, expected, strict=True)), abs=QUANTIZED)
    assert answer == "a; c"


@pytest.mark.nightly
def test_the_page_of_a_bank_answers_for_the_tenant_that_is_chosen_as_peft_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_bert(7, NOTE)
    said(lsr, "bank", "--from", "lora", "--base", "base", "-o", "bank")
    said(lsr, "export", "bank", "--base", "base", "--to", "onnx", "-o", "build/onnx")
    build = [sys.executable, ROOT / "examples/browser/build.py", "build/onnx", "-o", "build/browser"]
    subprocess.run(build, check=True)
    text = "the cat sleeps in the garden"
    encoded = AutoTokenizer.from_pretrained("base")(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0]
    asked = []
    with chromium() as browser, served("build/browser") as address:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.on("console", lambda message: asked.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.fill("#text", text, timeout=60_000)
        for tenant in ("bolt", "cord", "acme"):
            page.select_option("#tenant", tenant)
            page.wait_for_function("document.getElementById('state').textContent.startsWith('answered')")
            page.wait_for_timeout(500)
            assert page.locator("#answer th").all_inner_texts() == TENANTS[tenant]
            shares = [float(share) for share in page.locator("#answer td.share").all_inner_texts()]
            assert shares == pytest.approx(logits[SLICES[tenant]].softmax(0).tolist(), abs=QUANTIZED)
    assert all(url.startswith((address, "data:")) for url in asked), asked


def test_a_folder_without_graphs_is_refused_in_a_line(tmp_path):
    build = [sys.executable, ROOT / "examples/browser/build.py", tmp_path, "-o", tmp_path / "site"]
    run = subprocess.run(build, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "no config.json; needed: a folder that `lsr export --to onnx` has written" in run.stderr
    assert not Path(tmp_path / "site").exists()
