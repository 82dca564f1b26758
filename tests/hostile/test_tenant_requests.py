"""Random requests with the token that add tenants by labels or by labeled texts: each has a reason or an answer."""

import json
import random

import pytest
from transformers import AutoTokenizer

from lsr import AdapterBank
from lsr.serve.tenant_runner import TenantRunner
from tests.hostile.test_adapters import VALUES
from tests.kit import NIGHTLY
from tests.lsr.serve.asking import ask_passes, predict
from tests.lsr.serve.test_fitting import TENANTS, TEXTS, save_tenants

TRIALS = 2_000 if NIGHTLY else 25
ALLOWED = {"Authorization": "Bearer secret"}
SETS = [["bad", "good"], ["good", "bad"], ["a", "b", "c"], None]


@pytest.fixture
def passes(tmp_path, monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", "secret")
    folder, *_ = save_tenants(tmp_path, "bert")
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    return TenantRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 28, 1)


def whole(chance):
    """A valid request: its method, the end of its path, its type and its content."""
    labels = chance.choice(SETS)
    if chance.random() < 0.3:
        return "PUT", "", "application/json", {"labels": labels}
    texts = [chance.choice(TEXTS) for _ in range(chance.choice((4, 9)))]
    given = [chance.uniform(-9, 9) if labels is None else chance.choice(labels) for _ in texts]
    if chance.random() < 0.3:
        lines = ["text,label", *(f"{text},{label}" for text, label in zip(texts, given, strict=True))]
        return "POST", "/fit", "text/csv", "\n".join(lines)
    return "POST", "/fit", "application/json", {"texts": texts, "labels": given}


def harm(content, chance):
    """Put a value in the wrong place, damage some bytes, or do nothing."""
    value = chance.choice([*VALUES, "a cat" * 400, ["a"] * 2_000, "\ud800", 1e300, [["bad"]]])
    if isinstance(content, dict) and chance.random() < 0.7:
        key = chance.choice([*content, "more"])
        if isinstance(content.get(key), list) and chance.random() < 0.5:
            content[key][chance.randrange(len(content[key]))] = value
        else:
            content[key] = value
    text = content if isinstance(content, str) else json.dumps(content)
    sent = bytearray(text.encode(errors="surrogatepass"))  # so that a lone surrogate is sent too
    for _ in range(chance.choice((0, 0, 1, 3))):
        sent[chance.randrange(len(sent))] = chance.randrange(256)
    return bytes(sent)


def test_wrong_requests_have_their_reason_and_change_no_answer_of_others(passes, trials):
    chance = random.Random(0)
    statuses = set()

    async def answers(client):
        found = []
        for name in TENANTS:
            path, body = predict(name, "a cat")
            found.append((await client.post(path, json=body)).json()["answers"])
        return found

    async def call(client):
        expected = await answers(client)
        for _ in range(TRIALS):
            trials["trials"] += 1
            method, end, content_type, content = whole(chance)
            sent = harm(content, chance)
            headers = ALLOWED | {"Content-Type": content_type}
            response = await client.request(method, f"/v1/tenants/guest{end}", content=sent, headers=headers)
            assert response.status_code in (200, 400, 422), (sent, response.text)
            statuses.add(response.status_code)
            path, body = predict("guest", "a cat")
            assert (await client.post(path, json=body)).status_code in (200, 404, 422)
        return expected, await answers(client)

    expected, actual = ask_passes(passes, call)
    assert actual == expected
    assert statuses == {200, 400, 422}
