"""The endpoints that OpenAI's own client asks, held to plain transformers and PEFT with each adapter alone."""

import asyncio
import json
import os
import signal
import time
from itertools import pairwise

import httpx2
import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.serve.passes import BatchRunner
from lsr_server import process
from lsr_server.application import Service
from lsr_server.batches import BatchScheduler
from lsr_server.streaming import MAX_UNSENT, GrowingText
from tests.lsr.serve.asking import ask, ask_passes, posted
from tests.lsr.serve.started import started
from tests.lsr.serve.tenants import save_writers
from tests.workspace import sentences

TEXTS = [text for text, *_ in sentences(8)]
PROMPTS = [text[:12] for text in TEXTS[:3]]
MESSAGES = [
    {"role": "system", "content": "the cat"},
    {"role": "user", "content": "a dog"},
    {"role": "assistant", "content": "the"},
    {"role": "user", "content": "a cat"},
]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"
OWN = "{{ messages[-1]['content'] }} and"
END = 0  # the token that ends a text of the base model
MAX_NEW = 12
TOKENS = 60  # of prompt and completion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A decoder, the LoRAs `a` and `b`, a bank of both, and of `own` and `plain` with templates; `x` overflows."""
    folder = tmp_path_factory.mktemp("writers")
    bank = save_writers(folder, "abx")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = TOKENS
    tokenizer.save_pretrained(folder / "base")
    bank.add("own", folder / "a", task_info={"template": OWN})
    bank.add("plain", folder / "a", task_info={"template": "none"})
    pool = next(pool for name, pool in bank.pools().items() if name.endswith("directions"))
    pool.put(bank.slots["x"], pool.pack(3e38 * pool.rows(bank.slots["x"]).sign()))
    bank.save(folder / "bank")
    return folder


@pytest.fixture(scope="module")
def passes(folder):
    bank = AdapterBank.load(None, folder / "bank")
    return BatchRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), TOKENS, MAX_NEW)


@pytest.fixture(scope="module")
def alone(folder):
    """By name, the base model with one adapter, by PEFT."""
    models = {}
    for name in "ab":
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        models[name] = PeftModel.from_pretrained(base, folder / name).eval()
    return models


def greedy(model, ids, count):
    """Return the tokens that plain transformers writes after those of a prompt."""
    prompt = torch.tensor([ids])
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 1}
    return model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)[0, len(ids) :].tolist()


def nucleus(chances, top_p):
    """Return probabilities with 0 for all but the likeliest tokens, the fewest that have at least `top_p` together."""
    kept = torch.zeros_like(chances)
    together = 0.0
    for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
        kept[token] = chances[token]
        together += float(chances[token])
        if together >= top_p:
            break
    return kept / kept.sum()


def sampled(model, ids, count, temperature, seed, top_p=1):
    """Return tokens drawn one by one from the softmax of the last logits."""
    generator = torch.Generator().manual_seed(seed)
    written = []
    while len(written) < count and END not in written:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + written])).logits[0, -1]
        chances = nucleus((logits.double() / temperature).softmax(dim=0), top_p)
        written.append(int(torch.multinomial(chances, 1, generator=generator)))
    return written


def asking(call):
    """Return what `call` returns, given OpenAI's client of an HTTP client."""

    async def run(client):
        async with openai.AsyncOpenAI(
            base_url="http://server/v1",
            api_key="secret",
            http_client=client,
            max_retries=0,
        ) as asked:
            return await call(asked)

    return run


def reason(tokens):
    return "stop" if END in tokens else "length"


@pytest.mark.parametrize("temperature", [0, 0.05])
def test_completions_are_those_of_plain_transformers_with_each_adapter_alone(temperature, passes, alone):
    sampling = {"temperature": temperature, **({"seed": 7} if temperature else {})}

    async def call(client):
        answers = []
        for name, count in (("a", 5), ("b", MAX_NEW)):
            answers.append(client.completions.create(model=name, prompt=PROMPTS, max_tokens=count, **sampling))
        return await asyncio.gather(*answers)

    texts = set()
    answers = ask_passes(passes, asking(call))
    for name, count, answer in zip("ab", (5, MAX_NEW), answers, strict=True):
        prompts = [passes.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        written = []
        for ids in prompts:
            tokens = (
                sampled(alone[name], ids, count, temperature, 7) if temperature else greedy(alone[name], ids, count)
            )
            written.append(tokens)
        decoded = [passes.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        assert [choice.text for choice in answer.choices] == decoded
        assert [choice.finish_reason for choice in answer.choices] == [reason(tokens) for tokens in written]
        assert answer.usage.prompt_tokens == sum(map(len, prompts))
        assert answer.usage.completion_tokens == sum(map(len, written))
        texts.update(decoded)
    assert len(texts) > 3


@pytest.mark.parametrize("top_p", [0, 0.3, 0.6])
def test_with_top_p_tokens_are_drawn_from_the_likeliest_alone(top_p, passes, alone):
    async def call(client):
        common = {"model": "a", "max_tokens": MAX_NEW, "temperature": 1.5, "seed": 11}
        narrow = await client.completions.create(prompt=PROMPTS, top_p=top_p, **common)
        return narrow, await client.completions.create(prompt=PROMPTS, **common)

    narrow, wide = ask_passes(passes, asking(call))
    expected = []
    for prompt in PROMPTS:
        ids = passes.tokenizer(prompt)["input_ids"]
        tokens = sampled(alone["a"], ids, MAX_NEW, 1.5, 11, top_p)
        expected.append(passes.tokenizer.decode(tokens, skip_special_tokens=True))
    assert [choice.text for choice in narrow.choices] == expected
    assert [choice.text for choice in wide.choices] != expected


def test_another_seed_is_another_sample_and_without_one_each_prompt_has_its_own(passes):
    async def call(client):
        common = {"model": "a", "max_tokens": MAX_NEW, "temperature": 2}
        seeds = [client.completions.create(prompt="the cat", seed=seed, **common) for seed in (-1, -1, 2**63 - 2)]
        return await asyncio.gather(*seeds, client.completions.create(prompt=["the cat"] * 8, **common))

    first, again, other, unseeded = ask_passes(passes, asking(call))
    assert first.choices[0].text == again.choices[0].text != other.choices[0].text
    assert len({choice.text for choice in unseeded.choices}) > 4


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_conversation_is_answered_with_the_template_of_the_tokenizer_or_of_the_adapter(limit, folder, passes, alone):
    async def call(client):
        common = {"messages": MESSAGES, "temperature": 0, limit: 6}
        return await asyncio.gather(*(client.chat.completions.create(model=name, **common) for name in ("a", "own")))

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    for template, answer in zip((TEMPLATE, OWN), ask_passes(passes, asking(call)), strict=True):
        options = {"chat_template": template, "add_generation_prompt": True, "return_dict": False}
        ids = tokenizer.apply_chat_template(MESSAGES, **options)
        written = greedy(alone["a"], ids, 6)
        message = answer.choices[0].message
        assert message.content == tokenizer.decode(written, skip_special_tokens=True)
        assert (message.role, answer.choices[0].finish_reason) == ("assistant", reason(written))
        assert answer.usage.prompt_tokens == len(ids)


def test_a_text_ends_before_the_first_stop_sequence(passes):
    async def call(client):
        common = {"model": "b", "prompt": PROMPTS[0], "max_tokens": MAX_NEW, "temperature": 1, "seed": 3}
        whole = await client.completions.create(**common)
        text = whole.choices[0].text
        stops = [text[5:7], text[3:6]]
        return text, stops, await client.completions.create(stop=stops, **common)

    text, stops, answer = ask_passes(passes, asking(call))
    assert answer.choices[0].text == text[: min(text.index(stop) for stop in stops)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < MAX_NEW


@pytest.mark.parametrize("has_stop", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_the_answer_in_pieces(seed, has_stop, passes):
    async def call(client):
        common = {"model": "a", "max_tokens": MAX_NEW, "temperature": 2, "seed": seed}
        chat = common | {"messages": MESSAGES}
        text = (await client.chat.completions.create(**chat)).choices[0].message.content
        stop = {"stop": [text[4:6]]} if has_stop else {}
        whole = await client.chat.completions.create(**chat, **stop)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        pieces = [piece async for piece in await client.chat.completions.create(**chat, **stop, **options)]
        prompt = {"prompt": "the cat", "stream": True}
        return whole, pieces, [piece async for piece in await client.completions.create(**common, **prompt)]

    whole, pieces, plain = ask_passes(passes, asking(call))
    *texts, end, usage = pieces
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content for piece in texts) == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert [piece.choices[0].finish_reason for piece in plain[:-1]] == [None] * (len(plain) - 1)
    assert all(piece.usage is None for piece in (*texts, end))
    assert all("usage" in piece.model_fields_set for piece in pieces)  # null, as OpenAI's reference says
    assert not any("usage" in piece.model_fields_set for piece in plain)
    assert len({piece.id for piece in pieces}) == 1


def test_a_stream_that_fails_ends_with_an_error_of_the_client_and_a_line_in_the_log(passes, monkeypatch, caplog):
    real = passes.bank.model.forward
    steps = []

    def forward(*given, **named):
        steps.append(1)
        if len(steps) == 8:
            time.sleep(0.3)  # until the first pieces are sent
            raise MemoryError("no room")
        return real(*given, **named)

    async def call(client):
        sampled = {"temperature": 0.05, "seed": 7}
        asked = {"model": "a", "prompt": "the cat", "max_tokens": MAX_NEW, "stream": True, **sampled}
        whole = await client.completions.create(**asked | {"stream": False})
        monkeypatch.setattr(passes.bank.model, "forward", forward)
        pieces = await client.completions.create(**asked)
        texts = []

        async def read():
            async for piece in pieces:
                texts.append(piece.choices[0].text)

        with pytest.raises(openai.APIError, match="the server failed; its log says why"):
            await read()
        return whole.choices[0].text, "".join(texts)

    whole, begun = ask_passes(passes, asking(call))
    assert whole.startswith(begun)
    assert whole != begun
    assert "MemoryError: no room" in caplog.text


COMPLETION = {"model": "a", "prompt": "the cat", "max_tokens": 2}
CHAT = {"model": "a", "messages": MESSAGES}


def without(field):
    return {name: value for name, value in COMPLETION.items() if name != field}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (without("model"), "model", "needed: the name of an adapter"),
        (without("prompt"), "prompt", "needed: a text, or a list of 1 to 64"),
        (COMPLETION | {"prompt": [[1, 2]]}, "prompt", "needed: a text"),
        (COMPLETION | {"prompt": ["a"] * 65}, "prompt", "needed: a text, or a list of 1 to 64"),
        (COMPLETION | {"prompt": ["a", "b"], "stream": True}, "prompt", "or of one for a stream"),
        (COMPLETION | {"max_tokens": MAX_NEW + 1}, "max_tokens", f"needed: 1 to {MAX_NEW}"),
        (COMPLETION | {"max_tokens": True}, "max_tokens", f"needed: 1 to {MAX_NEW}"),
        (COMPLETION | {"temperature": 2.1}, "temperature", "needed: 0 to 2"),
        (COMPLETION | {"temperature": float("nan")}, "temperature", "needed: 0 to 2"),
        (COMPLETION | {"seed": 2**63}, "seed", "needed: a whole number of 64 bits"),
        (COMPLETION | {"seed": 1, "temperature": 0}, "seed", "has no effect at temperature 0"),
        (COMPLETION | {"stop": [""]}, "stop", "needed: at most 4 texts of 1 to 100 characters"),
        (COMPLETION | {"stop": "a" * 101}, "stop", "needed: at most 4 texts"),
        (COMPLETION | {"stop": list("abcde")}, "stop", "needed: at most 4 texts"),
        (COMPLETION | {"stream": 1}, "stream", "needed: true or false"),
        (COMPLETION | {"stream_options": {"include_usage": True}}, "stream_options", 'with "stream": true'),
        (COMPLETION | {"top_p": 1.1}, "top_p", "needed: 0 to 1"),
        (COMPLETION | {"top_p": "a"}, "top_p", "needed: 0 to 1"),
        (COMPLETION | {"top_p": 0.9, "temperature": 0}, "top_p", "has no effect at temperature 0"),
        (COMPLETION | {"n": 2}, "n", "has no effect here; leave it out, or give 1"),
        (COMPLETION | {"logprobs": 0}, "logprobs", "has no effect here; leave it out, or give False"),
        (CHAT | {"logprobs": True, "top_logprobs": 2}, "logprobs", "has no effect here; leave it out, or give False"),
        (COMPLETION | {"repetition_penalty": 1.1}, "repetition_penalty", "has no effect here; leave it out, or give 1"),
        (COMPLETION | {"user": "me"}, "user", "has no effect here; allowed are max_tokens, model, prompt"),
        (COMPLETION | {"prompt": "the cat " * 30}, None, "tokens; this adapter reads at most 48"),
        (COMPLETION | {"prompt": " "}, None, "prompt[0]: needed: a text of whole Unicode characters"),
        (COMPLETION | {"model": "x"}, "prompt[0]", "the answer is not finite"),
        (COMPLETION | {"model": "x", "stream": True}, "prompt[0]", "the answer is not finite"),
        (CHAT | {"messages": []}, "messages", "needed: a list of messages"),
        (CHAT | {"messages": [{"role": "tool", "content": "a"}]}, None, "messages: needed: a text, or a list"),
        (CHAT | {"model": "plain"}, "messages", "this adapter has no chat template: ask /v1/completions"),
        (CHAT | {"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "has no effect next to"),
        (CHAT | {"prompt": "a"}, "prompt", "has no effect here"),
    ],
)
def test_a_mistake_is_an_error_of_the_client_with_its_field(body, field, message, passes):
    async def call(client):
        path = "/chat/completions" if "messages" in body else "/completions"
        content = json.dumps(body).encode()
        with pytest.raises(openai.BadRequestError) as refused:
            await client.post(path, cast_to=object, content=content, options={"headers": {"Accept": "*/*"}})
        return refused.value

    error = ask_passes(passes, asking(call))
    assert error.body["message"].startswith(f"{field}: " if field else ("prompt[0]: ", "messages: "))
    assert message in error.body["message"]
    assert (error.param, error.type) == (field, "invalid_request_error")


def test_fields_that_are_null_or_ask_for_nothing_are_taken(passes):
    async def call(client):
        neutral = {"n": 1, "top_p": 1.0, "presence_penalty": 0, "logit_bias": {}, "logprobs": None, "stop": None}
        neutral["extra_body"] = {"repetition_penalty": 1, "min_p": 0, "store": False, "tool_choice": "none"}
        plain = {"model": "a", "prompt": "the cat", "max_tokens": 5, "temperature": 0}
        answers = [await client.completions.create(**plain, **more) for more in ({}, neutral)]
        return [answer.choices[0].text for answer in answers]

    first, second = ask_passes(passes, asking(call))
    assert first == second


def test_an_answer_can_be_a_message_of_the_next_conversation(passes):
    async def call(client):
        common = {"model": "a", "max_tokens": MAX_NEW, "temperature": 1, "seed": 1}
        message = (await client.chat.completions.create(messages=MESSAGES, **common)).choices[0].message
        by_hand = {"role": "assistant", "content": message.content}
        answers = []
        for said in (message, by_hand):
            again = await client.chat.completions.create(messages=[MESSAGES[1], said, MESSAGES[3]], **common)
            answers.append(again.choices[0].message.content)
        return answers

    answer, expected = ask_passes(passes, asking(call))
    assert answer == expected


def test_a_text_may_come_in_parts_and_a_developer_is_a_system(passes):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    asked = [{"role": "developer", "content": parts}, *MESSAGES[1:]]
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]

    async def call(client):
        common = {"model": "a", "max_tokens": MAX_NEW, "temperature": 1, "seed": 1}
        answers = []
        for messages in (asked, MESSAGES):
            answer = await client.chat.completions.create(messages=messages, **common)
            answers.append(answer.choices[0].message.content)
        with pytest.raises(openai.BadRequestError, match="needed: a text, or a list of messages"):
            await client.chat.completions.create(messages=[{"role": "user", "content": image}], **common)
        return answers

    answer, expected = ask_passes(passes, asking(call))
    assert answer == expected


def test_of_a_call_the_client_sends_what_it_is_given_and_no_more(passes):
    """So a field that is refused comes from a user, or from a library that sits on the client."""
    sent = []

    async def call(client):
        async def record(request):
            sent.append(json.loads(request.content))

        client.event_hooks["request"].append(record)
        return await asking(chat)(client)

    async def chat(client):
        await client.chat.completions.create(model="a", messages=MESSAGES)
        await client.completions.create(model="a", prompt="the cat")

    ask_passes(passes, call)
    assert sent == [{"model": "a", "messages": MESSAGES}, {"model": "a", "prompt": "the cat"}]


def test_who_has_the_token_sees_the_adapters_and_who_knows_no_name_is_told_none(passes, monkeypatch):
    async def call(client):
        monkeypatch.setenv("LSR_TOKEN", "secret")
        models = [model.id async for model in client.models.list()]
        monkeypatch.setenv("LSR_TOKEN", "another")
        with pytest.raises(openai.AuthenticationError, match="needed: Authorization"):
            await client.models.list()
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="c", prompt="the cat")
        return models, unknown.value

    models, unknown = ask_passes(passes, asking(call))
    assert models == ["a", "b", "x", "own", "plain"]
    assert (unknown.code, unknown.body["message"]) == ("model_not_found", "model: no adapter is named 'c'")


def test_too_many_waiting_texts_are_an_error_of_the_client(passes):
    app = Service(passes, BatchScheduler(passes, 1, 4, 0.01)).application()

    async def ask_often(own):
        def ask_for(count):
            return own.completions.create(model="a", prompt=["the cat"] * count)

        _, second = await asyncio.gather(ask_for(3), ask_for(3), return_exceptions=True)
        assert isinstance(second, openai.RateLimitError)
        assert "too many texts are waiting" in str(second)
        with pytest.raises(openai.BadRequestError, match="at most 4 texts at once, by --max-queue"):
            await ask_for(5)

    async def call(client):
        async with app.router.lifespan_context(app):
            await asking(ask_often)(client)

    import httpx2

    ask(call, transport=httpx2.ASGITransport(app))


WRITING = {"model": "a", "prompt": "the cat", "max_tokens": MAX_NEW, "seed": 1}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", WRITING),
        ("/v1/completions", WRITING | {"stream": True}),
        ("/v1/generate", {"adapter": "a", "prompts": ["the cat"], "max_new_tokens": MAX_NEW}),
    ],
)
def test_a_client_that_leaves_frees_its_place(path, asked, passes, monkeypatch):
    """The application is called as a server calls it: the client leaves after the third pass."""
    real = passes.bank.model.forward
    steps = []
    left = asyncio.Event()
    body = json.dumps(asked)
    app = Service(passes, BatchScheduler(passes, 8, 400, 0.01)).application()
    messages = iter([{"type": "http.request", "body": body.encode(), "more_body": False}])

    async def receive():
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    async def run():
        loop = asyncio.get_running_loop()

        def forward(*given, **named):
            steps.append(len(steps))
            if len(steps) == 3:
                asyncio.run_coroutine_threadsafe(leave(), loop).result()
            return real(*given, **named)

        async def leave():
            left.set()
            for _ in range(20):
                await asyncio.sleep(0)

        monkeypatch.setattr(passes.bank.model, "forward", forward)
        headers = [(b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            await asyncio.sleep(0.3)

    asyncio.run(run())
    assert len(steps) == 3


def test_a_client_that_does_not_read_its_stream_holds_nobody(folder, tmp_path):
    body = json.dumps({"model": "a", "prompt": "the cat", "max_tokens": MAX_NEW, "stream": True})
    request = f"POST /v1/completions HTTP/1.1\r\nHost: server\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    words = ["--max-new-tokens", str(MAX_NEW), "--max-batch-size", "4"]

    async def call(client, port):
        writers = []
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=16)
            writer.transport.pause_reading()
            writer.write(request.encode())
            writers.append(writer)
        create = {"model": "b", "prompt": "the cat", "temperature": 0, "max_tokens": MAX_NEW}
        answers = await asyncio.gather(*(client.completions.create(**create) for _ in range(8)))
        for writer in writers:
            writer.close()
        return {answer.choices[0].text for answer in answers}

    with started(folder / "bank", tmp_path / "log", *words) as server:

        async def run():
            address = f"http://127.0.0.1:{server.port}/v1"
            async with openai.AsyncOpenAI(base_url=address, api_key="-", max_retries=0, timeout=20) as client:
                return await call(client, server.port)

        assert len(asyncio.run(run())) == 1


def test_pieces_of_a_stream_arrive_while_it_is_written(folder, tmp_path):
    words = ["--max-new-tokens", "50"]
    with started(folder / "bank", tmp_path / "log", *words) as server:

        async def run():
            loop = asyncio.get_running_loop()
            address = f"http://127.0.0.1:{server.port}/v1"
            times = []
            async with openai.AsyncOpenAI(base_url=address, api_key="-", max_retries=0, timeout=20) as client:
                asked = {"model": "a", "prompt": "the", "max_tokens": 50, "temperature": 2, "seed": 5, "stream": True}
                async for _ in await client.completions.create(**asked):
                    times.append(loop.time())
            return times

        times = asyncio.run(run())
    assert len(times) > 20
    assert sum(later - earlier > 0.0005 for earlier, later in pairwise(times)) > 10


@pytest.mark.nightly
def test_a_stream_may_take_longer_than_its_client_may_need_to_read_an_answer(tmp_path):
    """The client sends a byte of its next request meanwhile, so that the server asks itself what it waits for."""
    bank = save_writers(tmp_path, "a", n_positions=2100)
    bank.save(tmp_path / "bank")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.model_max_length = 2100
    tokenizer.save_pretrained(tmp_path / "base")
    asked = {"model": "a", "prompt": "the", "max_tokens": 2000, "temperature": 0, "stream": True}
    body = json.dumps(asked)
    request = f"POST /v1/completions HTTP/1.1\r\nHost: server\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    words = ["--max-new-tokens", "2000", "--max-length", "2100", "--answer-seconds", "1"]

    async def run(port):
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(request.encode())
        await reader.readuntil(b"data: ")
        begin = loop.time()
        writer.write(b"G")
        await reader.readuntil(b"[DONE]")
        writer.close()
        return loop.time() - begin

    with started(tmp_path / "bank", tmp_path / "log", *words) as server:
        assert asyncio.run(run(server.port)) > 1.5


def test_a_text_that_its_client_leaves_unread_is_bounded_and_a_batch_that_begins_again_repeats_nothing():
    async def run():
        text = GrowingText()
        text.grow("the cat")
        first = text.take()
        text.grow("the")
        text.grow("the cat sat")
        second = text.take()
        text.grow("a" * (MAX_UNSENT + len("the cat sat")))
        is_left = text.is_left
        text.grow("a" * (MAX_UNSENT + len("the cat sat") + 1))
        return first, second, is_left, text.is_left

    assert asyncio.run(run()) == ("the cat", " sat", False, True)


def classify(model, given, **more):
    return "/classify", {"model": model, "input": given, **more}


def test_texts_are_classified_as_peft_does_with_each_adapter_alone(there):
    passes = BatchRunner(AdapterBank.load(None, there / "bank"), AutoTokenizer.from_pretrained(there / "base"), 30, 1)
    anna, ben, *_ = ask_passes(passes, posted(classify("anna", TEXTS[0]), classify("ben", TEXTS[:3])))
    for name, texts, answer in (("anna", TEXTS[:1], anna.json()), ("ben", TEXTS[:3], ben.json())):
        labels = json.loads((there / f"0/{name}/task.json").read_text())["labels"]
        base = AutoModelForSequenceClassification.from_pretrained(there / "base", num_labels=len(labels))
        model = PeftModel.from_pretrained(base, there / f"0/{name}").eval()
        tokens = [passes.tokenizer([text], return_tensors="pt") for text in texts]
        assert answer["usage"]["prompt_tokens"] == sum(encoded["input_ids"].numel() for encoded in tokens)
        for encoded, item in zip(tokens, answer["data"], strict=True):
            with torch.no_grad():
                chances = model(**encoded).logits[0].double().softmax(dim=0)
            assert item["probs"] == pytest.approx(chances.tolist(), abs=1e-5)
            assert (item["label"], item["num_classes"]) == (labels[int(chances.argmax())], len(labels))


def test_of_a_multi_label_adapter_the_labels_that_apply_and_the_likeliest_of_them_are_answered(there):
    base = AutoModelForSequenceClassification.from_pretrained(there / "base", num_labels=4)
    model = PeftModel.from_pretrained(base, there / "0/cleo").eval()
    tokenizer = AutoTokenizer.from_pretrained(there / "base")
    with torch.no_grad():
        shares = model(**tokenizer([TEXTS[0]], return_tensors="pt")).logits[0].double().sigmoid().tolist()
    labels = list("wxyz")
    ranked = sorted(labels, key=lambda label: -shares[labels.index(label)])
    bank = AdapterBank.load(None, there / "bank")
    for name, applying in (("all", labels), ("none", []), ("others", ranked[1:])):
        thresholds = [0.0 if label in applying else 1.0 for label in labels]
        bank.add(name, there / "0/cleo", task_info={"labels": labels, "thresholds": thresholds})
    passes = BatchRunner(bank, tokenizer, 30, 1)
    answers = ask_passes(passes, posted(*(classify(name, TEXTS[0]) for name in ("all", "none", "others"))))
    items = [answer.json()["data"][0] for answer in answers]
    assert [(item["label"], item["labels"]) for item in items] == [
        (ranked[0], labels),
        (None, []),
        (ranked[1], [label for label in labels if label in ranked[1:]]),
    ]
    assert all(item["probs"] == pytest.approx(shares, abs=1e-5) for item in items)
    assert {item["num_classes"] for item in items} == {4}


def test_what_cannot_be_classified_has_its_reason(there, passes):
    predicting = BatchRunner(
        AdapterBank.load(None, there / "bank"), AutoTokenizer.from_pretrained(there / "base"), 30, 1
    )
    bodies = [
        classify("anna", []),
        classify("anna", "a cat", priority=1),
        classify("anna", ["a cat", " "]),
        classify("eve", "a cat"),
        ("/v1/completions", {"model": "anna", "prompt": "a"}),
    ]
    refused = ask_passes(predicting, posted(*bodies))
    (writing,) = ask_passes(passes, posted(classify("a", "the cat")))
    assert [response.status_code for response in (*refused, writing)] == [400] * 6
    assert [response.json()["error"]["message"].partition(";")[0] for response in (*refused, writing)] == [
        "input: needed: a text, or a list of 1 to 64 of them",
        "priority: has no effect here",
        "input[1]: needed: a text of whole Unicode characters, not blank",
        "input[0]: the answer is not finite: the weights of this adapter overflow",
        "the base model of this bank does not write: ask /v1/predict or /classify",
        "the base model of this bank writes: ask /v1/completions",
    ]


def test_what_a_stop_does_not_wait_for_is_refused_in_json_and_a_stream_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "STOPPING", 1)
    bank = save_writers(tmp_path, "ab", n_positions=2100)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.model_max_length = 2100
    tokenizer.save_pretrained(tmp_path / "base")
    bank.save(tmp_path / "bank")
    words = ["--max-length", "2040", "--max-new-tokens", "2000"]
    long = {"model": "a", "prompt": PROMPTS[0], "max_tokens": 2000, "temperature": 0}

    async def call(client):
        has_begun = asyncio.Event()

        async def stream():
            plain = httpx2.AsyncClient(base_url=client.base_url, timeout=60)  # `client` reads the whole answer first
            request = plain.stream("POST", "/v1/completions", json=long | {"stream": True})
            async with plain, request as response:
                has_begun.set()
                await response.aread()

        streamed = asyncio.create_task(stream())
        await asyncio.wait_for(has_begun.wait(), 30)
        asked = [
            client.post("/v1/completions", json=long),
            client.post("/v1/generate", json={"adapter": "b", "prompts": PROMPTS, "max_new_tokens": 2000}),
        ]
        tasks = [asyncio.create_task(request) for request in asked]
        await asyncio.sleep(0.3)
        os.kill(running.process.pid, signal.SIGTERM)
        return await asyncio.gather(*tasks, streamed, return_exceptions=True)

    with started(tmp_path / "bank", tmp_path / "log", *words) as running:
        whole, generated, streamed = ask(call, f"http://127.0.0.1:{running.port}")
    assert isinstance(streamed, httpx2.RemoteProtocolError)
    assert (whole.status_code, whole.json()["error"]["message"]) == (503, "the server stops")
    assert (generated.status_code, generated.json()) == (503, {"error": "the server stops"})
