"""What one pass answers: texts, pairs and prompts of different adapters; asked over HTTP within this process."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from starlette.exceptions import HTTPException
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsr import AdapterBank
from lsr.serve.http.application import Batches
from lsr.serve.passes import Passes, Row
from tests import architectures
from tests.kit import refused
from tests.lsr.serve.asking import ask_passes, generate, posted, predict
from tests.workspace import sentences

PAIRS = [[first, second] for first, second, _ in sentences(6)]


@pytest.fixture
def passes(there):
    """A bank with a tenant of pairs among others."""
    bank, tokenizer = AdapterBank.load(None, there / "bank"), AutoTokenizer.from_pretrained(there / "base")
    bank.add("pia", there / "0/cleo", note={"columns": ["text", "text_pair"], "labels": list("abcd")})
    return Passes(bank, tokenizer, 512, 128)


def test_pairs_and_single_texts_pass_together(passes):
    requests = predict("pia", *PAIRS), predict("anna", "a cat"), predict("pia", "a cat")
    pia, anna, single = ask_passes(passes, posted(*requests))
    for pair, answer in zip(PAIRS, pia.json()["answers"], strict=True):
        logits = passes.bank(**passes.tokenizer(*pair, return_tensors="pt"), adapter_names=["pia"]).logits
        alone = passes.bank.answers(logits, ["pia"])[0].probabilities
        assert answer["probabilities"] == pytest.approx(alone, abs=1e-5)
    assert (anna.status_code, single.status_code) == (200, 422)
    assert single.json()["error"].startswith("texts[0]: needed: a list of two texts, each")


def test_what_breaks_a_batch_is_an_error_of_its_row_alone(passes, monkeypatch):
    real, sizes = passes.bank.forward, []

    def forward(*arguments, adapter_names, **inputs):
        sizes.append(len(adapter_names))
        if "ben" in adapter_names:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 25 GB")
        return real(*arguments, adapter_names=adapter_names, **inputs)

    monkeypatch.setattr(passes.bank, "forward", forward)
    names = ["anna", "ben", "cleo", "dora", "anna", "cleo", "dora", "anna"]
    found = ask_passes(passes, posted(*(predict(name, "a cat") for name in names)))
    assert [response.status_code for response in found] == [500 if name == "ben" else 200 for name in names]
    assert sorted(sizes) == [1, 1, 2, 2, 4, 4, 8]  # the halves with ben in them, and the others as a whole


def test_each_tenant_has_its_turn_and_large_adapters_pass_apart_in_every_other_batch():
    sizes, passed = {"wide": 512, "high": 300, "anna": 8, "ben": 64}, []

    def answers(rows):
        passed.append("".join(row.adapter[0] for row in rows))
        return [None] * len(rows)

    async def call():
        batches = Batches(SimpleNamespace(bank=SimpleNamespace(size=sizes.get), answers=answers), 6, 40, 0)
        counts = {"wide": 8, "anna": 15, "ben": 2, "high": 2}
        asked = [asyncio.create_task(batches.answers([Row(name, {}, 0)] * count)) for name, count in counts.items()]
        await asyncio.sleep(0.1)
        with pytest.raises(HTTPException, match="too many texts are waiting"):  # half of the room are its own
            await batches.answers([Row("anna", {}, 0)] * 6)
        with pytest.raises(HTTPException, match="at most 8 at once for an adapter of this size"):
            await batches.answers([Row("wide", {}, 0)] * 9)
        running = asyncio.create_task(batches.run())
        await asyncio.gather(*asked)
        running.cancel()

    asyncio.run(call())
    assert passed == ["wh", "ababaa", "wh", "aaaaaa", "ww", "aaaaa", "ww", "ww"]


def test_who_leaves_before_the_pass_is_unknown_and_nobody_else_is_named(passes, there, monkeypatch):
    passes.bank.add("annabel", there / "0/anna")
    real = passes.rows
    monkeypatch.setattr(passes, "rows", lambda *its: [real(*its), passes.bank.remove("anna")][0])
    (response,) = ask_passes(passes, posted(predict("anna", "a cat")))
    assert (response.status_code, response.json()) == (404, {"error": "no adapter is named 'anna'"})


def test_health_answers_while_a_text_is_tokenized(passes, monkeypatch):
    asked, real = threading.Event(), passes.rows
    monkeypatch.setattr(passes, "rows", lambda *its: asked.wait(30) and real(*its))

    async def call(client):
        path, body = predict("anna", "a cat")
        answer = asyncio.create_task(client.post(path, json=body))
        await asyncio.sleep(0.1)
        health = await client.get("/health")
        asked.set()
        return health, await answer

    assert [response.status_code for response in ask_passes(passes, call)] == [200, 200]


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """A folder of a decoder and three LoRAs, and passes of a bank of these, whose `x` overflows."""
    folder = tmp_path_factory.mktemp("writers")
    architectures.save(folder / "base", "gpt2")
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(folder / "base"))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False)
    for seed, name in enumerate("abx"):
        torch.manual_seed(seed)
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).save_pretrained(folder / name)
        bank.add(name, folder / name)
    bank.add("t", folder / "a", note={"template": "{{ messages }}"})
    stack = next(stack for name, stack in bank.stacks().items() if name.endswith("directions"))
    stack.put(bank.places["x"], 3e38 * stack.rows(bank.places["x"]).sign())
    return folder, Passes(bank, AutoTokenizer.from_pretrained(folder / "base"), 30, 12)


def test_prompts_are_continued_as_peft_continues_each_alone_and_what_overflows_says_nothing(writers):
    folder, passes = writers
    counts, prompts = {"a": 3, "b": 12}, [pair[at % 2][: 10 + 7 * at] for at, pair in enumerate(PAIRS[:3])]
    requests = [generate(name, count, *prompts) for name, count in counts.items()]
    *found, x = ask_passes(passes, posted(*requests, generate("x", 4, "the cat")))
    for (name, count), response in zip(counts.items(), found, strict=True):
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / name).eval()
        for prompt, answer in zip(prompts, response.json()["answers"], strict=True):
            ids = passes.tokenizer(prompt, return_tensors="pt")
            written = alone.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0)[0]
            assert answer == {"text": passes.tokenizer.decode(written[ids["input_ids"].shape[1] :], True)}
    assert x.status_code == 422
    assert x.json()["error"].startswith("prompts[0]: the answer is not finite")


def test_what_overflows_after_an_answer_has_ended_is_not_about_it(writers, monkeypatch):
    _, passes = writers
    real, steps = passes.bank.model.forward, []

    def forward(*given, **named):  # overflows for everybody from the third token on
        output = real(*given, **named)
        steps.append(1)
        if len(steps) > 2:
            output.logits[:] = torch.nan
        return output

    monkeypatch.setattr(passes.bank.model, "forward", forward)
    short, long = passes.answers([passes.rows("a", {}, ["the cat"], count)[0] for count in (2, 5)])
    assert (short is None, long) == (False, None)


def test_a_text_of_which_the_tokenizer_makes_no_token_is_refused(passes, monkeypatch):
    monkeypatch.setattr(passes, "tokenizer", lambda texts, **_: {"input_ids": [[5], []]})
    says = "texts[1]: has no token; needed: a text of which the tokenizer makes some"
    refused(passes.rows, "anna", {}, ["a cat", "\u200b"], 0, says=says)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (generate("a", 13, "the cat"), '"new_tokens": 1 to 12'),
        (generate("a", True, "the cat"), '"new_tokens": 1 to 12'),
        (generate("a", 2), "a list of 1 to 64"),
        (generate("a", 2, ["the", "cat"]), "prompts[0]: needed: a text"),
        (generate("a", 2, [{"role": "user", "content": "the cat"}]), "prompts[0]: needed: a text of whole"),
        (
            generate("t", 2, [{"role": "user", "text": "the cat"}]),
            "a text, or a list of messages with role and content",
        ),
        (generate("t", 2, [{"role": "user", "content": " "}]), "a text, or a list of messages with role and content"),
        (generate("a", 2, "the cat " * 10), "reads at most 18"),
        (predict("a", "the cat"), "writes: ask /v1/generate"),
    ],
)
def test_what_cannot_be_written_has_its_reason(asked, reason, writers):
    (response,) = ask_passes(writers[1], posted(asked))
    assert response.status_code == 422
    assert reason in response.json()["error"]
    refused(Passes, writers[1].bank, writers[1].tokenizer, 30, 30, says="--new-tokens: needed: some of the 30")
