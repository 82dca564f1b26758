"""A stranger with a valid token sends what is damaged, wrong or large, and the others are answered as before."""

import asyncio
import json
import os
import random
import shutil
import time
from pathlib import Path
from statistics import median

import pytest
from transformers import AutoTokenizer

from lsr import AdapterBank
from lsr.loading.contents import read_contents
from lsr.serve.passes import Passes
from tests.hostile.test_adapters import VALUES, harm
from tests.lsr.saved import save_lora
from tests.lsr.serve.asking import ask_passes, files, predict
from tests.lsr.serve.conftest import TENANTS, there  # noqa: F401 a fixture

NIGHTLY = os.environ.get("LSR_NIGHTLY") == "1"
TRIALS = 2_000 if NIGHTLY else 40
ALLOWED = {"Authorization": "Bearer secret"}
GUEST = "/v1/adapters/guest"
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def passes(there, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LSR_TOKEN", "secret")
    bank = AdapterBank.load(None, there / "bank")
    return Passes(bank, AutoTokenizer.from_pretrained(there / "base"), 512, 128)


def posted(client, name, *texts):
    path, body = predict(name, *texts)
    return client.post(path, json=body)


def body(chance):
    """A request with a value in the wrong place, or bytes that are none."""
    value, whole = (
        chance.choice([*VALUES, "a cat" * 200, ["a"] * 65, "\ud800"]),
        {"adapter": "anna", "texts": ["a cat"]},
    )
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

    expected, found = ask_passes(passes, call)
    assert found == expected


def test_damaged_adapters_are_refused_or_answer_and_change_no_answer_of_others(passes, there, trials, tmp_path):  # noqa: F811
    chance, whole = random.Random(1), [there / f"0/{name}" for name in TENANTS[::2]]  # those of LSR

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


def test_memory_returns_when_adapters_leave(passes, there, trials):  # noqa: F811
    sent = [files(there / f"{version}/{name}") for name in TENANTS for version in (0, 1)]
    before, rounds = passes.bank.nbytes, 10_000 if NIGHTLY else 40

    async def call(client):
        for at in range(rounds):
            trials["trials"] += 1
            response = await client.put(GUEST, files=sent[at % len(sent)], headers=ALLOWED)
            assert response.status_code == 200, response.text
            assert (await client.delete(GUEST, headers=ALLOWED)).status_code == 204
            if at == rounds // 5:
                resident = _resident()
        return resident

    grown = _resident() - ask_passes(passes, call)
    assert passes.bank.nbytes <= 4 * before
    assert grown < 50 << 20


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.nightly
def test_a_stranger_and_the_slowest_answers_of_256_tenants(passes, there, tmp_path, record_property):  # noqa: F811
    its, wide = (
        read_contents(there / "0/ben"),
        files(save_lora(tmp_path / "wide", "roberta", base=None, r=24, labels=500)),
    )
    passes.bank.add_all({f"t{number}": its for number in range(256)})

    async def slowest(client):
        """The p99 of single texts of all tenants, sixteen of them on their way at any time, in milliseconds."""
        seconds = []

        async def in_turn(first):
            for number in range(first, 1024, 16):
                begin = time.perf_counter()
                assert (await posted(client, f"t{number % 256}", "a cat")).status_code == 200
                seconds.append(time.perf_counter() - begin)
                await asyncio.sleep(0.02)

        await asyncio.gather(*map(in_turn, range(16)))
        return 1000 * sorted(seconds)[len(seconds) * 99 // 100]

    async def attack(client):
        while True:
            await client.put(GUEST, files=wide, headers=ALLOWED)
            await asyncio.gather(*(posted(client, "guest", *["a cat"] * 8) for _ in range(16)))

    async def call(client):
        client.event_hooks = {}  # a look at each answer would take longer than the server
        rounds = []
        for _ in range(5):
            quiet, stranger = await slowest(client), asyncio.create_task(attack(client))
            rounds.append((quiet, await slowest(client)))
            stranger.cancel()
        return rounds

    rounds = ask_passes(passes, call)
    ratio = median(attacked / quiet for quiet, attacked in rounds)
    said = ", ".join(f"{attacked:.0f} beside {quiet:.0f}" for quiet, attacked in rounds)
    record_property("measured", f"p99 of 256 tenants while a stranger attacks: {ratio:.2f} of that without ({said} ms)")
