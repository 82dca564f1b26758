"""The server of examples/: a process of its own, asked over HTTP."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import httpx2
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank, LsrConfig
from tests.workspace import ROOT, save_tiny_roberta, sentences

TENANTS, TEXTS = ("anna", "ben", "cleo", "dora"), [text for text, *_ in sentences(64)]
ALLOWED = {"Authorization": "Bearer secret"}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save(folder, base, seed, labels):
    """Save an adapter with random values: a LoRA or, every other one, of LSR."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    usual = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    config = LoraConfig(r=3, **usual) if seed % 2 else LsrConfig(rank_shape=(3,), separation_rank=None, **usual)
    model, generator = get_peft_model(model, config), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "task.json").write_text(json.dumps({"columns": ["text"], "labels": labels, "max_length": 28}))


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a base model, two versions of each tenant's adapter, and a bank of the first ones."""
    folder = tmp_path_factory.mktemp("server")
    save_tiny_roberta(folder / "base")
    for number, name in enumerate(TENANTS):
        for version in (0, 1):
            labels = [f"{name}-{version}-{label}" for label in range(2 + number)]
            save(folder / f"{version}/{name}", folder / "base", 2 * number + version, labels)
    bank = AdapterBank(AutoModelForSequenceClassification.from_pretrained(folder / "base"))
    for name in TENANTS:
        bank.add(name, folder / f"0/{name}")
    bank.add("eve", folder / "0/anna")
    for stack in bank.heads["classifier"].stacks.values():  # weights that overflow: the file of a bank may hold any
        stack.put(bank.place("eve"), 3e38 * stack.rows(bank.place("eve")).sign())
    bank.save(folder / "bank")
    return folder


@pytest.fixture(scope="module")
def expected(there):
    """What each version of each adapter says of each text, alone in a bank in this process: probabilities by label."""
    bank, tokenizer = AdapterBank.load(None, there / "bank"), AutoTokenizer.from_pretrained(there / "base")
    said = {}
    for version in (0, 1):
        for name in TENANTS:
            bank.add(name, there / f"{version}/{name}", replace=True)
            for text in TEXTS:
                with torch.no_grad():
                    logits = bank(**tokenizer([text], return_tensors="pt"), adapter_names=[name]).logits
                said[name, text, version] = bank.answers(logits, [name])[0].probabilities
    return said


@pytest.fixture(scope="module")
def server(there):
    """The server's process and address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "examples.server", there / "bank", "--port", str(port)]
    options = ["--rows", "8", "--queue", "400", "--max-tokens", "30"]
    environment = os.environ | {"LSR_TOKEN": "secret", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (there / "log").open("w") as log:
        process = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx2.get(f"{address}/health")
            break
        except httpx2.ConnectError:
            time.sleep(0.1)
    yield process, address
    process.kill()
    process.wait()
    assert "Traceback" not in (there / "log").read_text()


def files(folder):
    return {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS, "task.json")}


def metric(text, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def under_load(server, ask):
    async def run():
        limits = httpx2.Limits(max_connections=500)
        async with httpx2.AsyncClient(base_url=server[1], limits=limits, timeout=60, headers=ALLOWED) as client:
            return await ask(client)

    return asyncio.run(run())


def predicted(server, names, texts):
    """The responses to requests at once, one for each name."""

    async def ask(client):
        asked = [{"adapter": name, "texts": texts} for name in names]
        return await asyncio.gather(*(client.post("/v1/predict", json=one) for one in asked))

    return under_load(server, ask)


def check(name, response, expected, texts=TEXTS, versions=(0, 1)):
    """Check that all of a response is what one version of an adapter says of these texts; return which."""
    assert response.status_code == 200, response.text
    assert response.json()["adapter"] == name
    answers = response.json()["answers"]
    (version,) = (one for one in versions if answers[0]["probabilities"].keys() == expected[name, texts[0], one].keys())
    for text, answer in zip(texts, answers, strict=True):
        assert answer["probabilities"] == pytest.approx(expected[name, text, version], abs=1e-4)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    return version


def test_answers_that_are_not_finite_are_an_error_of_their_tenant_alone(server, expected):
    anna, eve, ben = predicted(server, ("anna", "eve", "ben"), TEXTS[:3])
    assert (eve.status_code, list(eve.json())) == (422, ["error"])
    assert eve.json()["error"].startswith("texts[0]: the answer is not finite")
    check("anna", anna, expected, TEXTS[:3], versions=(0,))
    check("ben", ben, expected, TEXTS[:3], versions=(0,))


def predict(**parts):
    return ("POST", "/v1/predict", {"json": {"adapter": "ben", "texts": ["a"]} | parts})


def put(content=b"", **headers):
    return ("PUT", "/v1/adapters/guest", {"content": content, "headers": ALLOWED | headers})


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (("POST", "/v1/predict", {"content": b'{"adapter"'}), 400, "not JSON"),
        (("POST", "/v1/predict", {"content": b"[" * 100_000}), 400, "not JSON"),
        (("POST", "/v1/predict", {"content": rb'{"adapter": "\ud800", "texts": ["a"]}'}), 404, r"named '\ud800'"),
        (("POST", "/v1/predict", {"content": rb'{"adapter": "ben", "texts": ["a", "\ud800"]}'}), 422, "texts[1]"),
        (("POST", "/v1/predict", {"content": b" " * 2_000_000}), 413, "at most 1,048,576 bytes"),
        (predict(more=1), 422, "needed"),
        (predict(adapter="ann"), 404, "no adapter is named 'ann'"),
        (predict(adapter="__base__"), 404, "no adapter is named '__base__'"),
        (predict(texts=["a"] * 65), 422, "a list of 1 to 64"),
        (predict(texts=["a", " "]), 422, "texts[1]: needed"),
        (predict(texts=["cat " * 40]), 422, "reads at most 28"),
        (("GET", "/v1/predict", {}), 405, "Method Not Allowed"),
        (("DELETE", "/v1/adapters/ann", {"headers": ALLOWED}), 404, "no adapter is named 'ann'"),
        (("POST", "/v1/predict", {"content": iter([b"{}"])}), 411, "needed: Content-Length"),
        (put(Authorization="Bearer secreu"), 401, "Bearer"),
        (put(), 422, f"{CONFIG} is missing"),
        (put(b"a", **{"Content-Type": "multipart/form-data; boundary=b"}), 400, ""),
    ],
)
def test_a_mistake_gets_a_reason_as_json(asked, status, reason, server):
    method, path, parts = asked
    response = httpx2.request(method, f"{server[1]}{path}", **parts)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert reason in response.json()["error"]
    assert not re.search("anna|cleo|dora", response.json()["error"])


@pytest.mark.parametrize(
    ("file", "change", "status", "reason"),
    [
        (WEIGHTS, lambda content: content[:-9], 422, "corrupt or cut off"),
        (WEIGHTS, lambda _: bytes(17 << 20), 413, "at most 16,777,216 bytes"),
        (CONFIG, lambda content: content.replace(b'"own"', b'"/etc"'), 422, "names frames in another folder"),
        ("task.json", lambda content: content.replace(b"28", b"0"), 422, "max_length must be a positive"),
        ("task.json", lambda content: content.replace(b'["text"]', b'["a", "b"]'), 422, "passes single texts"),
        ("task.json", lambda _: b'{"labels": [[], []]}', 422, "labels must be a list of names"),
        ("task.json", lambda _: rb'{"labels": ["one", "\ud800"]}', 422, "whole characters"),
        (CONFIG, lambda content: content.replace(b'"classifier"', b'"classifier", "dropout"'), 422, "dropout' in full"),
        ("task.json", lambda _: b'{"labels": ["one"]}', 422, "its head has 2 outputs"),
        ("../task.json", lambda _: b"{}", 422, "the parts of the form are"),
    ],
)
def test_files_that_cannot_be_served_change_nothing(file, change, status, reason, server, there, expected):
    sent = files(there / "0/anna")
    changed = sent | {file: change(sent.get(file))}
    assert changed != sent
    response = httpx2.put(f"{server[1]}/v1/adapters/anna", files=changed, headers=ALLOWED)
    assert response.status_code == status
    assert reason in response.json()["error"]
    again = httpx2.post(f"{server[1]}/v1/predict", json={"adapter": "anna", "texts": TEXTS})
    check("anna", again, expected, versions=(0,))


def test_adapters_are_replaced_and_removed_under_fire_and_no_row_gets_another_ones_answer(server, there, expected):
    sent = {(name, version): files(there / f"{version}/{name}") for name in TENANTS for version in (0, 1)}

    async def ask(client):
        changes = 0

        async def change(name):
            nonlocal changes
            for at in (1, 0, 1, 0, 1, 0):
                assert (await client.put(f"/v1/adapters/{name}", files=sent[name, at])).status_code == 200
                assert (await client.put("/v1/adapters/guest", files=sent[name, 0])).status_code == 200
                assert (await client.delete("/v1/adapters/guest")).status_code in (204, 404)
                changes += 1

        async def fire(number):
            dice = random.Random(number)
            begin = dice.randrange(6 * len(TENANTS))
            while changes < begin:  # spread over the changes, however long they take
                await asyncio.sleep(0.001)
            name, texts = dice.choice([*TENANTS, "guest"]), dice.sample(TEXTS, 1)
            return name, texts, await client.post("/v1/predict", json={"adapter": name, "texts": texts})

        done = await asyncio.gather(*map(change, TENANTS), *map(fire, range(400)))
        return done[len(TENANTS) :]

    versions = Counter()
    for name, texts, response in under_load(server, ask):
        if name != "guest":
            versions[check(name, response, expected, texts)] += 1
        else:  # an adapter of one of them, or gone
            assert response.status_code in (200, 404), response.text
    assert versions[0] > 10 < versions[1]


def test_without_room_requests_are_refused_and_the_others_answered(server, expected):
    names = [random.Random(at).choice(TENANTS) for at in range(30)]

    refused = 0
    for name, response in zip(names, predicted(server, names, TEXTS), strict=True):
        if response.status_code == 429:
            refused += 1
            assert (response.headers["Retry-After"], list(response.json())) == ("1", ["error"])
        else:
            check(name, response, expected, versions=(0,))
    assert 0 < refused < 25


def test_a_stop_answers_what_was_asked(server, expected):
    async def ask(client):
        while True:
            asked = asyncio.create_task(client.post("/v1/predict", json={"adapter": "dora", "texts": TEXTS}))
            while not asked.done():
                if metric((await client.get("/metrics")).text, "lsr_waiting_rows"):
                    server[0].send_signal(signal.SIGTERM)
                    return await asked

    check("dora", under_load(server, ask), expected, versions=(0,))
    assert server[0].wait(30) in (0, -signal.SIGTERM)
