"""The command `lsr serve`: a process of its own, asked over HTTP; each answer is one that openapi.json describes."""

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
from functools import partial
from itertools import product
from unittest import mock

import httpx2
import pytest
import torch
from peft import PeftModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.serve import bank
from lsr.serve.passes import BatchRunner
from lsr_server import command
from lsr_server.application import Service
from lsr_server.batches import BatchScheduler
from lsr_server.questions import check_token
from tests.kit import refused
from tests.lsr.serve.asking import DESCRIBED, ask, ask_passes, files, posted, predict
from tests.lsr.serve.tenants import TENANTS
from tests.workspace import ROOT, sentences

TEXTS = [text for text, *_ in sentences(64)]
LONG = [f"{text} {text}" for text in TEXTS[:8]]  # second versions truncate them
ALLOWED = {"Authorization": "Bearer secret"}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def expected(there):
    """What PEFT says of each text, truncated to what the version reads, with each version of each adapter alone."""
    tokenizer, said = AutoTokenizer.from_pretrained(there / "base"), {}
    for name, version in product(TENANTS, (0, 1)):
        folder = there / f"{version}/{name}"
        task = json.loads((folder / "task.json").read_text())
        labels = task["labels"]
        base = AutoModelForSequenceClassification.from_pretrained(there / "base", num_labels=len(labels))
        model = PeftModel.from_pretrained(base, folder).eval()
        for text in (*TEXTS, *LONG):
            encoded = tokenizer([text], truncation=True, max_length=task["max_length"], return_tensors="pt")
            with torch.no_grad():
                chances = model(**encoded).logits[0].double().softmax(dim=0).tolist()
            said[name, text, version] = dict(zip(labels, chances, strict=True))
    return said


@pytest.fixture(scope="module")
def server(there):
    """The server's process and address, which it says when it can be asked."""
    words = [
        there / "bank",
        "--port",
        "0",
        "--max-batch-size",
        "8",
        "--max-queue",
        "400",
        "--max-length",
        "30",
        "--client-connections",
        "512",
    ]
    environment = os.environ | {"LSR_TOKEN": "secret", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (there / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "lsr", "serve", *words], env=environment, stderr=log)
    while not (said := (there / "log").read_text()).endswith("\n") and process.poll() is None:
        time.sleep(0.1)
    started = re.fullmatch(r"(http://127\.0\.0\.1:\d+): 5 adapters; PUT and DELETE are enabled by LSR_TOKEN\n", said)
    yield process, started[1]
    process.kill()
    process.wait()
    assert "Traceback" not in (there / "log").read_text()


def metric(text, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def request(server, *asked, **parts):
    return ask(lambda client: client.request(*asked, **parts), server[1])


def check(name, response, expected, texts=TEXTS, versions=(0, 1)):
    """Check that all of a response is what one version of an adapter says of these texts; return which."""
    assert response.status_code == 200, response.text
    assert response.json()["adapter"] == name
    answers = response.json()["answers"]
    by_version = {version: expected[name, texts[0], version] for version in versions}
    (version,) = (one for one, chances in by_version.items() if answers[0]["probabilities"].keys() == chances.keys())
    for text, answer in zip(texts, answers, strict=True):
        assert answer["probabilities"] == pytest.approx(expected[name, text, version], abs=1e-4)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    return version


def test_answers_that_are_not_finite_are_an_error_of_their_tenant_alone(server, expected):
    requests = [predict(name, *TEXTS[:3]) for name in ("anna", "eve", "ben")]
    anna, eve, ben = ask(posted(*requests), server[1])
    assert eve.status_code == 422
    assert eve.json()["error"].startswith("texts[0]: the answer is not finite")
    check("anna", anna, expected, TEXTS[:3], versions=(0,))
    check("ben", ben, expected, TEXTS[:3], versions=(0,))


def predicting(**parts):
    return ("POST", "/v1/predict", {"json": {"adapter": "ben", "texts": ["a"]} | parts})


def put(content=b"", **headers):
    return ("PUT", "/v1/adapters/guest", {"content": content, "headers": ALLOWED | headers})


def header(content):
    """A safetensors file with this header alone."""
    return len(content).to_bytes(8, "little") + content


async def chunks():
    yield b"{}"


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (("POST", "/v1/predict", {"content": b'{"adapter"'}), 400, "not JSON"),
        (("POST", "/v1/predict", {"content": b"[" * 40_000}), 400, "not JSON"),
        (("POST", "/v1/predict", {"content": b"[" * 100_000}), 422, "over 50,000 JSON values; at most that is allowed"),
        (("POST", "/v1/predict", {"content": b'{"adapter": "\xff"}'}), 400, "not JSON: 'utf-8' codec can't decode"),
        (("POST", "/v1/predict", {"content": rb'{"adapter": "\ud800", "texts": ["a"]}'}), 404, r"named '\ud800'"),
        (("POST", "/v1/predict", {"content": rb'{"adapter": "ben", "texts": ["a", "\ud800"]}'}), 422, "texts[1]"),
        (("POST", "/v1/predict", {"content": b" " * 2_000_000}), 413, "at most 1,048,576 bytes"),
        (("POST", "/v1/predict", {"content": chunks()}), 411, "needed: Content-Length"),
        (predicting(more=1), 422, "needed"),
        (predicting(adapter="ann"), 404, "no adapter is named 'ann'"),
        (predicting(adapter="__base__"), 404, "no adapter is named '__base__'"),
        (predicting(texts=["a"] * 65), 422, "a list of 1 to 64"),
        (predicting(texts=["a", " "]), 422, "texts[1]: needed: a text"),
        (predicting(texts=[["a", "b"]]), 422, "texts[0]: needed: a text"),
        (predicting(texts=["a", "a" * 1_000_000]), 422, "texts: over 38,400 characters together; at most that are"),
        (("POST", "/v1/generate", {"json": {}}), 422, "does not write: ask /v1/predict"),
        (("GET", "/v1/predict", {}), 405, "Method Not Allowed"),
        (("DELETE", "/v1/adapters/ann", {"headers": ALLOWED}), 404, "no adapter is named 'ann'"),
        (("DELETE", "/v1/adapters/__base__", {"headers": ALLOWED}), 404, "no adapter is named '__base__'"),
        (("DELETE", "/v1/adapters/ben", {}), 401, "Bearer"),
        (put(Authorization="Bearer secreu"), 401, "Bearer"),
        (put(), 422, f"{CONFIG} is missing"),
        (put(b"a", **{"Content-Type": "multipart/form-data; boundary=b"}), 400, ""),
    ],
)
def test_a_mistake_gets_a_reason_as_json(asked, status, reason, server):
    method, path, parts = asked
    response = request(server, method, path, **parts)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert reason in response.json()["error"]
    assert not re.search("anna|cleo|dora", response.json()["error"])


def test_bytes_that_are_no_http_get_a_reason_as_json(server):
    host, port = server[1].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        head, _, body = b"".join(iter(partial(connection.recv, 4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"content-type: application/json" in head.lower()
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    ("file", "change", "status", "reason"),
    [
        (WEIGHTS, lambda _: bytes(17 << 20), 413, "at most 16,777,216 bytes"),
        ("task.json", lambda content: content.replace(b"28", b"0"), 422, "max_length must be a positive"),
        ("task.json", lambda content: content.replace(b'["text"]', b'["a", "b", "c"]'), 422, "two for pairs"),
        ("task.json", lambda _: b'{"template": "{{ 9 ** 9 }}"}', 422, "template must be none or that of the base"),
        (CONFIG, lambda content: content.replace(b'"classifier"', b'"classifier", "dropout"'), 422, "dropout' in full"),
        ("../task.json", lambda _: b"{}", 422, "the parts of the form are"),
        ("task.json", lambda _: b" " * 1_048_577, 413, "task.json has 1,048,577 bytes; at most 1,048,576 are allowed"),
        (CONFIG, lambda _: b"[" + b"[]," * 30_000 + b"[]]", 422, "has over 50,000 JSON values; at most that is"),
        (
            WEIGHTS,
            lambda _: header(b" " * 1_048_577),
            413,
            "the header of adapter_model.safetensors has 1,048,577 bytes",
        ),
        (
            WEIGHTS,
            lambda _: header(b"[" + b"[]," * 30_000 + b"[]]"),
            422,
            "the header of adapter_model.safetensors has over",
        ),
    ],
)
def test_files_that_cannot_be_served_change_nothing(file, change, status, reason, server, there, expected):
    sent = files(there / "0/anna")
    changed = sent | {file: change(sent.get(file))}
    assert changed != sent
    response = request(server, "PUT", "/v1/adapters/anna", files=changed, headers=ALLOWED)
    assert response.status_code == status
    assert reason in response.json()["error"]
    (again,) = ask(posted(predict("anna", *TEXTS)), server[1])
    check("anna", again, expected, versions=(0,))


def test_a_path_that_ends_with_a_slash_is_not_redirected_to_a_host_that_the_client_names(server):
    response = httpx2.post(f"{server[1]}/v1/predict/", json={}, headers={"Host": "elsewhere"})
    assert (response.status_code, response.json()) == (404, {"error": "Not Found"})


@pytest.mark.parametrize("token", ["secret", "schlüssel", "ключ"])
def test_the_token_may_have_any_letters(token, monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", token)
    sent = f"Bearer {token}".encode()
    check_token(Request({"type": "http", "headers": [(b"authorization", sent)]}))
    check_token(Request({"type": "http", "headers": [(b"authorization", sent.replace(b"Bearer", b"bearer"))]}))
    for wrong in (sent + b"x", sent.replace(b"Bearer", b"Basic"), token.encode(), b""):
        with pytest.raises(HTTPException, match="Bearer"):
            check_token(Request({"type": "http", "headers": [(b"authorization", wrong)]}))


def test_a_name_that_is_not_there_is_not_compared_with_those_of_all_tenants(there, monkeypatch):
    compared = []
    monkeypatch.setattr(bank, "get_close_matches", lambda *given: compared.append(given) or [])
    monkeypatch.setenv("LSR_TOKEN", "secret")
    held = AdapterBank.load(str(there / "base"), there / "bank")
    passes = BatchRunner(held, AutoTokenizer.from_pretrained(there / "base"), 28, 1)

    async def call(client):
        return await client.delete("/v1/adapters/ann", headers=ALLOWED)

    assert ask_passes(passes, call).status_code == 404
    assert not compared


def test_every_path_is_described_and_answers(server):
    passes = mock.Mock(max_new_tokens=0)
    assert {(path, method) for path, its in DESCRIBED["paths"].items() for method in its.keys() - {"parameters"}} == {
        (route.path, method.lower())
        for route in Service(passes, BatchScheduler(passes, 1, 1, 0)).application().routes
        for method in route.methods - {"HEAD"}
    }
    assert request(server, "GET", "/openapi.json").json() == DESCRIBED
    assert request(server, "GET", "/health").json() == {"status": "ok", "adapters": 5}
    assert metric(request(server, "GET", "/metrics").text, "lsr_adapters") == 5


def test_adapters_are_replaced_and_removed_under_fire_and_no_row_gets_another_ones_answer(server, there, expected):
    sent = {(name, version): files(there / f"{version}/{name}") for name in TENANTS for version in (0, 1)}

    async def call(client):
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
            name, texts = dice.choice([*TENANTS, "guest"]), [dice.choice([*TEXTS[:32], *LONG])]
            return name, texts, await client.post("/v1/predict", json={"adapter": name, "texts": texts})

        done = await asyncio.gather(*map(change, TENANTS), *map(fire, range(400)))
        return done[len(TENANTS) :]

    versions = Counter()
    for name, texts, response in ask(call, server[1], headers=ALLOWED):
        if name == "guest":  # an adapter of one of them, or gone
            assert response.status_code in (200, 404), response.text
        else:
            version = check(name, response, expected, texts)
            versions[version] += 1
            versions["truncated"] += response.json()["truncated"]
    assert min(versions[0], versions[1], versions["truncated"]) > 5, versions


def test_without_room_requests_are_refused_and_the_others_answered(server, expected):
    names = [random.Random(at).choice(TENANTS) for at in range(30)]

    refused = 0
    for name, response in zip(names, ask(posted(*(predict(name, *TEXTS) for name in names)), server[1]), strict=True):
        if response.status_code == 429:
            refused += 1
            assert (response.headers["Retry-After"], list(response.json())) == ("1", ["error"])
        else:
            check(name, response, expected, versions=(0,))
    assert 0 < refused < 25


def test_a_stop_answers_what_was_asked(server, expected):
    async def call(client):
        while True:
            asked = asyncio.create_task(client.post("/v1/predict", json={"adapter": "dora", "texts": TEXTS}))
            while not asked.done():
                if metric((await client.get("/metrics")).text, "lsr_waiting_rows"):
                    server[0].send_signal(signal.SIGTERM)
                    return await asked

    check("dora", ask(call, server[1]), expected, versions=(0,))
    assert server[0].wait(30) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bank", "--max-batch-size", "0"], "argument --max-batch-size: needed: a whole number above 0, got '0'"),
        (["bank", "--port", "70000"], "--port: needed: 0 to 65535, got 70000"),
        (
            ["bank", "--host", "nohost.invalid"],
            "--host: needed: an address of this machine, such as 127.0.0.1, got nohost",
        ),
        (["nothing"], "nothing/bank.safetensors: no such file"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, says, there, monkeypatch):
    monkeypatch.chdir(there)
    refused(main, ["serve", *words, *([] if "--port" in words else ["--port", "0"])], says=says)


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else name)
    line = refused(main, ["serve", "bank"])
    assert line.endswith("serve: needs uvicorn; in a clone of lsr-adapt: pip install -c constraints.txt -e '.[server]'")
