"""A stranger with a valid token sends what is damaged, wrong or large, and the others are answered as before."""

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lsr import AdapterBank
from lsr.serve.passes import BatchRunner
from tests.hostile.test_adapters import VALUES, harm
from tests.kit import NIGHTLY, resident
from tests.lsr.serve.asking import ask_passes, files, predict
from tests.lsr.serve.tenants import TENANTS

TRIALS = 2_000 if NIGHTLY else 40
ALLOWED = {"Authorization": "Bearer secret"}
GUEST = "/v1/adapters/guest"


def batch_runner(there, monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", "secret")
    bank = AdapterBank.load(None, there / "bank")
    return BatchRunner(bank, AutoTokenizer.from_pretrained(there / "base"), 512, 128)


@pytest.fixture
def passes(there, monkeypatch):
    return batch_runner(there, monkeypatch)


def posted(client, name, *texts):
    path, body = predict(name, *texts)
    return client.post(path, json=body)


def body(chance):
    """A request with a value in the wrong place, or bytes that are none."""
    value = chance.choice([*VALUES, "a cat" * 200, ["a"] * 65, "\ud800"])
    whole = {"adapter": "anna", "texts": ["a cat"]}
    changed = chance.choice(
        [whole | {chance.choice([*whole, "more"]): value}, {"adapter": "anna", "texts": [value]}, value]
    )
    content = bytearray(json.dumps(changed).encode())
    for _ in range(chance.choice((0, 0, 1, 3))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def test_wrong_requests_have_their_reason_and_change_no_answer(passes, trials):
    chance = random.Random(0)

    async def call(client):
        expected = (await posted(client, "anna", "a cat")).json()
        for _ in range(TRIALS):
            trials["trials"] += 1
            sent = body(chance)
            response = await client.post("/v1/predict", content=sent)
            assert response.status_code in (200, 400, 404, 413, 422), (sent, response.text)
        return expected, (await posted(client, "anna", "a cat")).json()

    expected, actual = ask_passes(passes, call)
    assert actual == expected


def test_damaged_adapters_are_refused_or_answer_and_change_no_answer_of_others(passes, there, trials, tmp_path):
    chance = random.Random(1)
    whole = [there / f"0/{name}" for name in TENANTS[::2]]  # those of LSR

    async def call(client):
        expected = (await posted(client, "anna", "a cat")).json()["answers"][0]["probabilities"]
        for _ in range(TRIALS):
            trials["trials"] += 1
            harm(Path(shutil.copytree(chance.choice(whole), tmp_path / "it")), chance)
            response = await client.put(GUEST, files=files(tmp_path / "it"), headers=ALLOWED)
            shutil.rmtree(tmp_path / "it")
            assert response.status_code in (200, 422), response.text
            answers = await asyncio.gather(posted(client, "guest", "a cat"), posted(client, "anna", "a cat"))
            assert answers[0].status_code in (200, 404, 422), answers[0].text
            assert answers[1].json()["answers"][0]["probabilities"] == pytest.approx(expected, abs=1e-5)

    ask_passes(passes, call)


def test_memory_returns_when_adapters_leave(there, trials, monkeypatch):
    # Changes rest longer than they take, to leave time to requests: here there are none, and ten thousand changes.
    monkeypatch.setattr("lsr_server.batches.REST", 0)
    passes = batch_runner(there, monkeypatch)
    sent = [files(there / f"{version}/{name}") for name in TENANTS for version in (0, 1)]
    before = passes.bank.nbytes
    rounds = 10_000 if NIGHTLY else 40

    async def call(client):
        for at in range(rounds):
            trials["trials"] += 1
            response = await client.put(GUEST, files=sent[at % len(sent)], headers=ALLOWED)
            assert response.status_code == 200, response.text
            assert (await client.delete(GUEST, headers=ALLOWED)).status_code == 204
            if at == rounds // 5:
                settled = resident()
        return settled

    grown = resident() - ask_passes(passes, call)
    assert passes.bank.nbytes <= 4 * before
    assert grown < 50 << 20
