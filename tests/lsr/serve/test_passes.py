"""What one pass answers: texts, pairs and prompts of different adapters; asked over HTTP within this process."""

import asyncio
import re
import threading
from collections import Counter

import pytest
import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.loading.padding import prepare_batches
from lsr.serve.modules import Version
from lsr.serve.passes import BatchRunner
from lsr_onnx.rows import Wanted
from tests.kit import refused
from tests.lsr.serve.asking import ask_passes, generate, posted, predict
from tests.lsr.serve.tenants import save, save_writers
from tests.workspace import sentences

PAIRS = [[first, second] for first, second, _ in sentences(6)]


@pytest.fixture
def passes(there):
    """A bank with a tenant of pairs among others."""
    bank = AdapterBank.load(None, there / "bank")
    tokenizer = AutoTokenizer.from_pretrained(there / "base")
    bank.add("pia", there / "0/cleo", task_info={"columns": ["text", "text_pair"], "labels": list("abcd")})
    return BatchRunner(bank, tokenizer, 512, 128)


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
    real = passes.bank.forward
    sizes = []

    def forward(*arguments, adapter_names, **inputs):
        sizes.append(len(adapter_names))
        if "ben" in adapter_names:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 25 GB")
        return real(*arguments, adapter_names=adapter_names, **inputs)

    monkeypatch.setattr(passes.bank, "forward", forward)
    names = ["anna", "ben", "cleo", "dora", "anna", "cleo", "dora", "anna"]
    found = ask_passes(passes, posted(*(predict(name, "a cat") for name in names)), wait=1)
    assert [response.status_code for response in found] == [500 if name == "ben" else 200 for name in names]
    assert sorted(sizes) == [1, 1, 2, 2, 4, 4, 8]  # the halves with ben in them, and the others as a whole


def test_who_leaves_before_the_pass_is_unknown_and_nobody_else_is_named(passes, there, monkeypatch):
    passes.bank.add("annabel", there / "0/anna")
    real = passes.rows
    monkeypatch.setattr(passes, "rows", lambda *its: [real(*its), passes.bank.remove("anna")][0])
    (response,) = ask_passes(passes, posted(predict("anna", "a cat")))
    assert (response.status_code, response.json()) == (404, {"error": "no adapter is named 'anna'"})


@pytest.mark.parametrize(
    ("texts", "task_info", "status", "reason"),
    [
        (["a cat"], {"columns": ["text", "text_pair"]}, 422, "texts[0]: needed: a list of two texts, each"),
        (["the cat sat on the mat"], {"max_length": 3}, 200, None),
        (["a cat", "the cat"], {"labels": ["new", "newer"]}, 200, None),
    ],
    ids=["pairs", "length", "other weights"],
)
def test_a_row_is_read_again_if_its_adapter_is_replaced_before_its_batch(
    texts, task_info, status, reason, passes, there, tmp_path, monkeypatch
):
    task_info = {"columns": ["text"], "labels": ["one", "two"], "max_length": 28, **task_info}
    save(tmp_path / "new", there / "base", 7, task_info["labels"])
    real = passes.rows
    read = []

    def rows(*arguments):  # in a thread of its own: the adapter is replaced after a request is read
        read.append(real(*arguments))
        if len(read) == 1:
            passes.bank.add("anna", tmp_path / "new", task_info=task_info, replace=True)
        return read[-1]

    monkeypatch.setattr(passes, "rows", rows)
    (response,) = ask_passes(passes, posted(predict("anna", *texts)))
    assert response.status_code == status, response.text
    if reason is not None:
        assert reason in response.json()["error"]
        return
    plain = AutoTokenizer.from_pretrained(there / "base")
    model = AutoModelForSequenceClassification.from_pretrained(there / "base", num_labels=2)
    alone = PeftModel.from_pretrained(model, tmp_path / "new").eval()
    for text, answer in zip(texts, response.json()["answers"], strict=True):
        with torch.no_grad():
            encoded = plain(text, truncation=True, max_length=task_info["max_length"], return_tensors="pt")
            expected = alone(**encoded).logits[0].softmax(dim=0).tolist()
        assert answer["probabilities"] == pytest.approx(dict(zip(task_info["labels"], expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize(("count", "status"), [(1, 200), (40, 422)])
def test_an_adapter_that_is_replaced_by_a_large_one_while_its_rows_wait_passes_apart(
    count, status, passes, there, tmp_path, monkeypatch
):
    labels = [str(label) for label in range(90)]
    save(tmp_path / "large", there / "base", 7, labels)
    real = passes.answers
    forward = passes.bank.forward
    begun = threading.Event()
    replaced = threading.Event()
    passed = []

    def answers(rows):  # in the bank's thread: the first batch lasts until the adapter of the next rows is replaced
        if not begun.is_set():
            begun.set()
            assert replaced.wait(30)
        return real(rows)

    def spied(*arguments, adapter_names, **inputs):
        passed.append({*adapter_names})
        return forward(*arguments, adapter_names=adapter_names, **inputs)

    monkeypatch.setattr(passes, "answers", answers)
    monkeypatch.setattr(passes.bank, "forward", spied)

    async def call(client):
        path, body = predict("ben", "a cat")
        first = asyncio.create_task(client.post(path, json=body))
        await asyncio.to_thread(begun.wait, 30)
        requests = predict("anna", *["a cat"] * count), predict("cleo", "a cat"), predict("dora", "a cat")
        waiting = [asyncio.create_task(client.post(path, json=body)) for path, body in requests]
        while not re.search(rf"^lsr_waiting_rows {count + 2}\.0$", (await client.get("/metrics")).text, re.MULTILINE):
            assert not any(task.done() for task in waiting)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(passes.bank.add, "anna", tmp_path / "large", replace=True)
        replaced.set()
        return await asyncio.gather(first, *waiting)

    _, anna, *others = ask_passes(passes, call)
    assert [response.status_code for response in (anna, *others)] == [status, 200, 200]
    assert not any("anna" in names and len(names) > 1 for names in passed)
    if status == 200:
        assert {*anna.json()["answers"][0]["probabilities"]} == {*labels}
    else:
        assert anna.json()["error"] == "at most 32 at once for an adapter of this size"


def test_health_answers_while_a_text_is_tokenized(passes, monkeypatch):
    asked = threading.Event()
    real = passes.rows
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
    bank = save_writers(folder, "abx")
    bank.add("t", folder / "a", task_info={"template": "{{ messages }}"})
    pool = next(pool for name, pool in bank.pools().items() if name.endswith("directions"))
    pool.put(bank.slots["x"], pool.pack(3e38 * pool.rows(bank.slots["x"]).sign()))
    return folder, BatchRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 30, 12)


def loaded_alone(folder, name):
    """Return the base model with an adapter, by PEFT."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / name).eval()


def continued(model, ids, count):
    """Return the tokens that a model writes after those of a prompt, so many at most."""
    prompt = torch.tensor([ids])
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    return model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)[0, len(ids) :]


def test_prompts_are_continued_as_peft_continues_each_alone_and_what_overflows_says_nothing(writers):
    folder, passes = writers
    counts = {"a": 3, "b": 12}
    prompts = [pair[at % 2][: 10 + 7 * at] for at, pair in enumerate(PAIRS[:3])]
    requests = [generate(name, count, *prompts) for name, count in counts.items()]
    *found, x = ask_passes(passes, posted(*requests, generate("x", 4, "the cat")))
    for (name, count), response in zip(counts.items(), found, strict=True):
        alone = loaded_alone(folder, name)
        for prompt, answer in zip(prompts, response.json()["answers"], strict=True):
            written = continued(alone, passes.tokenizer(prompt)["input_ids"], count)
            assert answer == {"text": passes.tokenizer.decode(written, skip_special_tokens=True)}
    assert x.status_code == 422
    assert x.json()["error"].startswith("prompts[0]: the answer is not finite")


def test_what_overflows_after_an_answer_has_ended_is_not_about_it(writers, monkeypatch):
    _, passes = writers
    real = passes.bank.model.forward
    steps = []

    def forward(*given, **named):  # overflows for everybody from the third token on
        output = real(*given, **named)
        steps.append(1)
        if len(steps) > 2:
            output.logits[:] = torch.nan
        return output

    monkeypatch.setattr(passes.bank.model, "forward", forward)
    short, long = passes.answers(
        [passes.rows("a", passes.bank.versions["a"], ["the cat"], Wanted(count))[0] for count in (2, 5)]
    )
    assert (short is None, long) == (False, None)


def test_a_text_of_which_the_tokenizer_makes_no_token_is_refused(passes, monkeypatch):
    monkeypatch.setattr(passes, "tokenizer", lambda texts, **_: {"input_ids": [[5], []]})
    says = "texts[1]: has no token; needed: a text of which the tokenizer makes some"
    refused(passes.rows, "anna", Version({}, {}, 2), ["a cat", "\u200b"], says=says)


def test_a_text_may_have_as_many_tokens_as_its_adapter_reads(passes):
    count = len(passes.tokenizer("a cat")["input_ids"])
    (row,) = passes.rows("anna", Version({"max_length": count}, {}, 2), ["a cat"])
    assert len(row.inputs["input_ids"]) == count
    says = f"texts[0]: {count} tokens; this adapter reads at most {count - 1}"
    refused(passes.rows, "anna", Version({"max_length": count - 1}, {}, 2), ["a cat"], is_strict=True, says=says)


def test_a_long_prompt_is_truncated_on_the_left_and_counted_and_its_end_is_continued_as_peft_does(writers):
    folder, passes = writers
    passes.bank.add("reader", folder / "a", task_info={"max_length": 9})
    long = " ".join(first for first, *_ in PAIRS)
    ids = passes.tokenizer(long)["input_ids"]
    assert len(ids) > 18
    whole, shorter = ask_passes(passes, posted(generate("a", 4, "the cat", long), generate("reader", 4, long)))
    passes.bank.remove("reader")
    alone = loaded_alone(folder, "a")
    expected = [passes.tokenizer.decode(continued(alone, ids[-most:], 4), skip_special_tokens=True) for most in (18, 9)]
    assert whole.json()["answers"][1] == {"text": expected[0]}
    assert shorter.json()["answers"] == [{"text": expected[1]}]
    assert [response.json()["truncated"] for response in (whole, shorter)] == [1, 1]


END = "<|endoftext|>"


@pytest.mark.parametrize("adds_end", [False, True], ids=["plain", "the tokenizer adds an end token"])
def test_a_prompt_of_end_tokens_is_continued_as_peft_continues_these_tokens(adds_end, writers, monkeypatch):
    folder, passes = writers
    prompts = [END, f"the cat{END}", f"{END}the cat", "the cat"]
    ids = [passes.tokenizer(prompt)["input_ids"] for prompt in prompts]
    assert [len(its) for its in ids] == [1, 3, 3, 2]
    if adds_end:
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        prepare_batches(tokenizer, passes.bank.model.config, "")
        added = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, tokenizer.eos_token_id)])
        tokenizer.backend_tokenizer.post_processor = added
        assert tokenizer("the cat")["input_ids"] == [*ids[3], tokenizer.eos_token_id]
        monkeypatch.setattr(passes, "tokenizer", tokenizer)
    (response,) = ask_passes(passes, posted(generate("a", 5, *prompts)))
    assert response.status_code == 200, response.text
    alone = loaded_alone(folder, "a")
    for prompt_ids, answer in zip(ids, response.json()["answers"], strict=True):
        written = continued(alone, prompt_ids, 5)
        assert answer == {"text": passes.tokenizer.decode(written, skip_special_tokens=True)}


TEMPLATE = "{% for message in messages %}{{ message['content'] }} and {% endfor %}"


def test_a_prompt_is_continued_by_one_version_with_its_own_template_while_versions_change(writers, monkeypatch):
    folder, passes = writers
    monkeypatch.setattr(passes, "is_strict", True)  # the reason tells versions apart
    task_infos = {"a": {"max_length": 12}, "b": {"template": TEMPLATE, "max_length": 16}}
    prompts = [first[: 6 + 5 * at] for at, (first, _) in enumerate(PAIRS)]
    expected = {}
    for name, task_info in task_infos.items():
        alone = loaded_alone(folder, name)
        for prompt in prompts:
            text = f"{prompt} and " if "template" in task_info else prompt
            ids = passes.tokenizer(text, add_special_tokens="template" not in task_info)["input_ids"]
            if len(ids) > task_info["max_length"]:
                expected[name, prompt] = f"{len(ids)} tokens; this adapter reads at most {task_info['max_length']}"
            else:
                expected[name, prompt] = passes.tokenizer.decode(continued(alone, ids, 4), skip_special_tokens=True)
    passes.bank.add("changing", folder / "a", task_info=task_infos["a"])

    async def call(client):
        done = 0

        async def change():
            for turn in range(1, 20):
                while done < 4 * turn:
                    await asyncio.sleep(0.001)
                name = "ab"[turn % 2]
                options = {"task_info": task_infos[name], "replace": True}
                await asyncio.to_thread(passes.bank.add, "changing", folder / name, **options)

        async def fire(number):
            nonlocal done
            prompt = prompts[number % len(prompts)]
            path, body = generate("changing", 4, prompt)
            response = await client.post(path, json=body)
            done += 1
            return prompt, response

        async def in_turn(first):
            return [await fire(number) for number in range(first, 120, 8)]

        changing = asyncio.create_task(change())
        answered = await asyncio.gather(*map(in_turn, range(8)))
        await changing
        return [one for each in answered for one in each]

    versions = Counter()
    for prompt, response in ask_passes(passes, call):
        content = response.json()
        said = content["answers"][0]["text"] if response.status_code == 200 else content["error"].partition(": ")[2]
        fitting = [name for name in task_infos if expected[name, prompt] == said]
        assert fitting, (prompt, said)
        versions.update(fitting)
    passes.bank.remove("changing")
    assert versions["a"] > 10 < versions["b"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (generate("a", 13, "the cat"), '"max_new_tokens": 1 to 12'),
        (generate("a", True, "the cat"), '"max_new_tokens": 1 to 12'),
        (generate("a", 2), "a list of 1 to 64"),
        (generate("a", 2, ["the", "cat"]), "prompts[0]: needed: a text"),
        (generate("a", 2, [{"role": "user", "content": "the cat"}]), "prompts[0]: needed: a text of whole"),
        (
            generate("t", 2, [{"role": "user", "text": "the cat"}]),
            "a text, or a list of messages with role and content",
        ),
        (generate("t", 2, [{"role": "user", "content": " "}]), "a text, or a list of messages with role and content"),
        *(
            (generate("t", 2, [{"role": role, "content": "the cat"}]), "where role is system or user or assistant")
            for role in ("x" * 900_000, "tool", "", None, ["user"] * 1000, {"user": "user"})
        ),
        (generate("t", 2, [{"role": "user", "content": "a"}] * 5_000), "over 23,040 characters together"),
        (predict("a", "the cat"), "writes: ask /v1/generate"),
    ],
)
def test_what_cannot_be_written_has_its_reason(asked, reason, writers):
    (response,) = ask_passes(writers[1], posted(asked))
    assert response.status_code == 422
    assert reason in response.json()["error"]
    refused(BatchRunner, writers[1].bank, writers[1].tokenizer, 30, 30, says="--max-new-tokens: needed: some of the 30")
