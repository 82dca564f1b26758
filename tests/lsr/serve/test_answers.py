"""How large answers may be, and that nobody waits for those of others: asked over HTTP within this process."""

import asyncio
import json
import threading
import time

import pytest
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from transformers import AutoTokenizer

from lsr import AdapterBank
from lsr.serve.modules import Version
from lsr.serve.passes import BatchRunner
from lsr_onnx.answers import Answer
from lsr_server import application, bodies, questions
from lsr_server.answers import (
    MAX_ANSWER_BYTES,
    MAX_COMPUTED_BYTES,
    SMALL,
    check_answers,
    longest_token,
    most_bytes,
)
from tests import architectures
from tests.kit import refused
from tests.lsr.saved import save_lora
from tests.lsr.serve.asking import ask_passes, files, posted, predict

WORST = [f"{at:03}" + "\x01" * 197 for at in range(320)]  # 64,000 bytes, of which JSON makes 6 times as many
LABELS = {
    "of few bytes": {"labels": ["a", "b"]},
    "none": {},
    "a number": {"labels": None},
    "of all kinds of characters": {"labels": ['"', "\\", "\n", "\x00", "é", "東", "\U0001f600", "a" * 200]},
    "any number of which apply": {"labels": ['"', "東", "\x7f"], "thresholds": [0.0, 0.0, 0.0]},
    "at the limits": {"labels": WORST, "thresholds": [0.0] * 320},
    "many": {"labels": [f"{at:06}" for at in range(10_000)]},
}


@pytest.fixture(scope="module")
def passes(there, tmp_path_factory):
    """A bank with an adapter for each of LABELS."""
    bank, folder = AdapterBank.load(None, there / "bank"), tmp_path_factory.mktemp("labels")
    for name, task_info in LABELS.items():
        count = 1 if name == "a number" else len(task_info.get("labels", [0] * 100))
        save_lora(folder / name, "roberta", base=None, r=2, labels=count)
        bank.add(name, folder / name, task_info=task_info)
    return BatchRunner(bank, AutoTokenizer.from_pretrained(there / "base"), 512, 128)


@pytest.mark.parametrize("name", LABELS)
def test_answers_have_no_more_bytes_than_are_expected_before_they_are_computed(name, passes):
    expected = most_bytes(passes.bank.versions[name], 0, 0)
    (one, two) = ask_passes(passes, posted(predict(name, "a cat"), predict(name, "a cat", "the cat")))
    assert one.status_code == 200, one.text
    again = json.dumps(one.json(), ensure_ascii=False, separators=(",", ":")).encode()
    assert again == one.content  # as a client reads it, and writes it without spaces
    if two.status_code == 200:  # and not too large
        assert len(two.content) - len(one.content) <= expected
    assert expected / 4 < len(one.content) < expected + 60 + len(name)


def test_a_request_for_too_many_bytes_is_refused_with_how_many_texts_are_allowed(passes):
    for texts, status in ((5, 200), (6, 422)):
        (response,) = ask_passes(passes, posted(predict("at the limits", *["a cat"] * texts)))
        assert response.status_code == status, response.text
    assert MAX_ANSWER_BYTES * 0.75 < 5 * most_bytes(passes.bank.versions["at the limits"], 0, 0) <= MAX_ANSWER_BYTES
    assert response.json()["error"].endswith("at most 4,194,304 are allowed: at most 5 at once for this adapter")


def test_what_is_written_has_no_more_bytes_than_its_tokens_can_have(tmp_path):
    architectures.save(tmp_path / "base", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    token_bytes = longest_token(tokenizer)
    for token in range(len(tokenizer)):
        text = tokenizer.decode([0, token, token, token], skip_special_tokens=True)
        assert len(json.dumps({"text": text}, ensure_ascii=False).encode()) <= most_bytes(
            Version({}, {}, 2), 3, token_bytes
        )
    with pytest.raises(HTTPException, match="at most 4,095 max_new_tokens"):
        check_answers(1, most_bytes(Version({}, {}, 2), 5000, 1024), 1024, 5000)


def test_large_answers_have_room_in_all_and_small_ones_need_none(passes, monkeypatch):
    begun, real = threading.Event(), passes.answers
    monkeypatch.setattr(passes, "answers", lambda rows: real(rows) if begun.wait(30) else [])
    each = 5 * most_bytes(passes.bank.versions["at the limits"], 0, 0)
    fits = MAX_COMPUTED_BYTES // each

    async def call(client):
        path, body = predict("at the limits", *["a cat"] * 5)
        large = [asyncio.create_task(client.post(path, json=body)) for _ in range(fits + 1)]
        refused_first, _ = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        path, body = predict("anna", "a cat")
        small = asyncio.create_task(client.post(path, json=body))
        begun.set()
        return len(refused_first), await asyncio.gather(*large), await small

    count, large, small = ask_passes(passes, call)
    assert (count, small.status_code) == (1, 200)
    assert sorted(response.status_code for response in large) == [200] * fits + [429]
    refusal = max(large, key=lambda response: response.status_code)
    assert refusal.headers["Retry-After"] == "1"
    assert "too many large answers" in refusal.json()["error"]
    (again,) = ask_passes(passes, posted(predict("at the limits", *["a cat"] * 5)))
    assert again.status_code == 200


@pytest.mark.parametrize("busy", ["encode_response", "parse_json"])
def test_health_answers_while_a_large_answer_is_rendered_or_a_large_body_is_parsed(busy, passes, monkeypatch):
    module = {"encode_response": application, "parse_json": questions}[busy]
    begun, asked, real = threading.Event(), threading.Event(), getattr(module, busy)

    def slow(*arguments):
        if busy == "parse_json" or arguments[1]:
            begun.set()
            assert asked.wait(30)
        return real(*arguments)

    monkeypatch.setattr(module, busy, slow)

    async def call(client):
        path, body = predict("many", "a cat")
        content = json.dumps(body).encode() + b" " * SMALL
        answer = asyncio.create_task(client.post(path, content=content))
        await asyncio.to_thread(begun.wait, 30)
        health = await client.get("/health")
        asked.set()
        return health, await answer

    assert [response.status_code for response in ask_passes(passes, call)] == [200, 200]


def test_the_next_batch_passes_while_a_large_answer_is_made(passes, monkeypatch):
    answered, real = threading.Event(), Answer.probabilities

    def slow(answer):
        if answer.adapter == "many":
            answered.wait(5)
        return real.fget(answer)

    monkeypatch.setattr(Answer, "probabilities", property(slow))

    async def call(client):
        path, body = predict("many", "a cat")
        large = asyncio.create_task(client.post(path, json=body))
        await asyncio.sleep(0.2)
        path, body = predict("of few bytes", "a cat")
        begin = time.monotonic()
        small = await client.post(path, json=body)
        seconds = time.monotonic() - begin
        answered.set()
        return seconds, small, await large

    seconds, small, large = ask_passes(passes, call)
    assert (small.status_code, large.status_code) == (200, 200)
    assert seconds < 3  # whoever makes it in the thread of the batches makes others wait for 5


def test_health_answers_while_the_form_of_an_adapter_is_parsed(passes, there, monkeypatch):
    begun, asked, real = threading.Event(), threading.Event(), MultiPartParser.parse

    async def slow(parser):
        begun.set()
        assert asked.wait(5)  # whoever parses in the event loop waits in vain
        return await real(parser)

    monkeypatch.setattr(MultiPartParser, "parse", slow)
    monkeypatch.setenv("LSR_TOKEN", "secret")

    async def call(client):
        headers = {"Authorization": "Bearer secret"}
        sent = asyncio.create_task(client.put("/v1/adapters/guest", files=files(there / "0/anna"), headers=headers))
        await asyncio.to_thread(begun.wait, 30)
        health = await client.get("/health")
        asked.set()
        return health, await sent

    assert [response.status_code for response in ask_passes(passes, call)] == [200, 200]


def test_values_of_a_body_are_counted_outside_of_its_strings():
    # By hand: 1 of the list, 2 of its commas; 1 of the object, 2 of its colons, 1 of its comma; 1 of the list in it.
    content = ['a "quoted, [text]"', "\\", {"\\\\": '\\",[', ":": []}]
    for is_ascii in (True, False):
        assert bodies.count_of_signs(json.dumps(content, ensure_ascii=is_ascii)) == 8
    text = json.dumps({"texts": ["[" * 100_000, '"[\\' * 100_000]})
    bodies.check_values(text, "a body")
    refused(
        bodies.check_values, "[" + "[]," * 30_000 + "[]]", "a body", kind=HTTPException, says="over 50,000 JSON values"
    )
