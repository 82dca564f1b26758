"""`lsr serve` in a process of its own, asked over HTTP: its answers against plain transformers and PEFT.

The reference is each text alone with one adapter. Every response is validated against the server's own description.
"""

import asyncio
import json
import random
import signal
import socket
from collections import Counter

import pytest
from transformers import AutoTokenizer

from tests import helpers
from tests.lsr.server.asking import (
    ALLOWED,
    FILES,
    TOKEN,
    Request,
    count_tenants,
    count_truncated,
    delete,
    files_of,
    find_metric,
    fit,
    predict,
    put,
    put_labels,
    read_answers,
    read_chosen,
    send,
    started,
    together,
)
from tests.lsr.server.tenants import ALL, CHANGING, LENGTHS, NUMBER, PAIR, TAGS, TEXTS, THRESHOLDS, save_base

OF_ALL_LENGTHS = [" ".join(["the"] * count) for count in range(1, 34)]
ODD = ["a", "ÄÖ 東京 \U0001f600", "the\ncat <s> \x00", TEXTS[0] * 9]
ASKED = [*TEXTS, *OF_ALL_LENGTHS, *ODD]
PAIRS = [[first, second] for first in ODD for second in (*ODD, *OF_ALL_LENGTHS[:20:4])]
CLOSE = 1e-5


def check(response, expected):
    """Check the answers to all texts of a request."""
    for answer, value in zip(read_answers(response), expected, strict=True):
        assert answer == pytest.approx(value, abs=CLOSE)


def test_each_text_of_a_batch_is_answered_as_by_its_adapter_alone(server, there, expected):
    asked = dict.fromkeys((*CHANGING, TAGS, NUMBER), ASKED) | {PAIR: PAIRS}
    tokenizer = AutoTokenizer.from_pretrained(there / "base")
    responses = server.ask(*(predict(name, *texts) for name, texts in asked.items()))
    for (name, texts), response in zip(asked.items(), responses, strict=True):
        check(response, expected(name, texts))
        columns = [list(column) for column in zip(*texts, strict=True)] if name == PAIR else [texts]
        counts = map(len, tokenizer(*columns)["input_ids"])
        assert count_truncated(response) == sum(count > LENGTHS[0] for count in counts)


def test_a_text_may_be_asked_by_itself(server, expected):
    responses = server.ask(*(predict("ben", text) for text in ODD))
    for response, value in zip(responses, expected("ben", ODD), strict=True):
        check(response, [value])


def test_second_versions_answer_from_when_they_are_put(server, there, expected):
    for version in (1, 0):
        server.ask(*(put(name, files_of(there / f"{version}/{name}")) for name in CHANGING))
        responses = server.ask(*(predict(name, *TEXTS) for name in CHANGING))
        for name, response in zip(CHANGING, responses, strict=True):
            check(response, expected(name, TEXTS, version))


@pytest.mark.parametrize(
    ("single", "pair", "side"),
    [("<s> $A <unk>", "<s> $A <unk> <unk> $B <unk>", "left"), ("$A <s>", "$A $B:1 <unk>:1 <s>", "right")],
)
def test_any_tokenizer_truncates_as_transformers_does(single, pair, side, bank, tmp_path, expected):
    base = tmp_path / "base"
    save_base(base, single, pair, truncation_side=side)
    with started(bank, tmp_path / "log", "--base", str(base)) as server:
        texts, pairs = server.ask(predict("anna", *ASKED), predict(PAIR, *PAIRS))
    check(texts, expected("anna", ASKED, base=base))
    check(pairs, expected(PAIR, PAIRS, base=base))


def test_the_label_is_the_likeliest_or_all_whose_probabilities_reach_their_thresholds(server):
    of_classes, of_tags, of_number = server.ask(*(predict(name, *TEXTS) for name in ("ben", TAGS, NUMBER)))
    for chosen, chances in zip(read_chosen(of_classes), read_answers(of_classes), strict=True):
        assert chosen == max(chances, key=chances.get)
    for chosen, chances in zip(read_chosen(of_tags), read_answers(of_tags), strict=True):
        reached = zip(chances.items(), THRESHOLDS, strict=True)
        assert chosen == [label for (label, chance), threshold in reached if chance >= threshold]
    assert len({tuple(chosen) for chosen in read_chosen(of_tags)}) > 1
    assert read_chosen(of_number) == [None] * len(TEXTS)


def test_tenants_are_replaced_added_and_removed_while_others_ask_and_no_answer_is_lost_or_anothers(
    server, there, expected
):
    texts = [*TEXTS[:8], *OF_ALL_LENGTHS[8:16]]
    sent = {(name, version): files_of(there / f"{version}/{name}") for name in CHANGING for version in (0, 1)}
    of_version = {key: expected(key[0], texts, key[1]) for key in sent}
    by_labels = {frozenset(answers[0]): key for key, answers in of_version.items()}

    async def use(client):
        changes = 0

        async def change(name):
            nonlocal changes
            for version in (1, 0, 1, 0):
                assert (await send(client, put(name, sent[name, version]))).status_code == 200
                assert (await send(client, put("guest", sent[name, 0]))).status_code == 200
                assert (await send(client, delete("guest"))).status_code in (204, 404)
                changes += 1

        async def ask(number):
            dice = random.Random(number)
            begin = dice.randrange(4 * len(CHANGING))
            while changes < begin:  # spread over the changes, however long these take
                await asyncio.sleep(0.001)
            name = dice.choice([*CHANGING, "guest"])
            chosen = dice.sample(range(len(texts)), k=3)
            return name, chosen, await send(client, predict(name, *(texts[at] for at in chosen)))

        asking = asyncio.gather(*map(ask, range(240)))
        await asyncio.gather(*map(change, CHANGING))
        return await asking

    counts = Counter()
    for name, chosen, response in server.call(use):
        if name == "guest" and response.status_code == 404:
            continue
        owner, version = by_labels[frozenset(read_answers(response)[0])]
        assert name in (owner, "guest")
        check(response, [of_version[owner, version][at] for at in chosen])
        counts[version] += 1
    assert min(counts[0], counts[1]) > 5
    assert count_tenants(server) == len(ALL)


def test_an_adapter_whose_answers_overflow_is_an_error_of_its_tenant_alone(server, there, expected, tmp_path):
    sent = files_of(there / "0/ben")
    weights = helpers.write(tmp_path / "adapter_model.safetensors", sent["adapter_model.safetensors"])
    helpers.edit(weights, overflow_head)
    server.ask(put("eve", sent | {weights.name: weights.read_bytes()}))
    eve, ben = server.ask(predict("eve", *TEXTS[:3]), predict("ben", *TEXTS[:3]))
    assert eve.status_code != 200
    check(ben, expected("ben", TEXTS[:3]))


def overflow_head(tensors):
    """Give the head the largest weights of float32."""
    for name, tensor in tensors.items():
        if name.endswith("classifier.weight"):
            tensor.copy_(3e38 * tensor.sign())


def post(content):
    """Ask for predictions by these bytes."""
    return Request("POST", "/v1/predict", {"content": content})


def ask(**changes):
    """Ask a tenant for predictions, with some fields changed."""
    return Request("POST", "/v1/predict", {"json": {"adapter": "ben", "texts": ["a"]} | changes})


def upload(content, **headers):
    """Put an adapter by these bytes."""
    return Request("PUT", "/v1/adapters/guest", {"content": content, "headers": ALLOWED | headers})


async def chunks():
    """Send a body without its length."""
    yield b"{}"


WRONG = {"Authorization": f"Bearer {TOKEN}x".encode()}
BASIC = {"Authorization": f"Basic {TOKEN}".encode()}
MISTAKES = [
    (post(b'{"adapter"'), 400, "JSON"),
    (post(b"[" * 100_000), 422, "50,000"),
    (post(b'{"adapter": "\xff"}'), 400, "JSON"),
    (post(rb'{"adapter": "\ud800", "texts": ["a"]}'), 404, ""),
    (post(rb'{"adapter": "ben", "texts": ["a", "\ud800"]}'), 422, "texts[1]"),
    (post(b" " * 2_000_000), 413, "1,048,576"),
    (post(chunks()), 411, "Content-Length"),
    (ask(more=1), 422, "adapter"),
    (ask(adapter="ann"), 404, "ann"),
    (ask(adapter="__base__"), 404, "__base__"),
    (ask(texts=[]), 422, "64"),
    (ask(texts=["a"] * 65), 422, "64"),
    (ask(texts=["a", " "]), 422, "texts[1]"),
    (ask(texts=[["a", "b"]]), 422, "texts[0]"),
    (ask(texts=["a" * 1_000_000]), 422, "characters"),
    (predict(PAIR, "a"), 422, "texts[0]"),
    (predict(PAIR, ["a", ""]), 422, "texts[0]"),
    (Request("GET", "/v1/predict", {}), 405, ""),
    (Request("POST", "/v1/predict/", {"headers": {"Host": "elsewhere"}}), 404, ""),
    (upload(b""), 422, "adapter_config.json"),
    (upload(b"a", **{"Content-Type": "multipart/form-data; boundary=b"}), 400, ""),
    (upload(b"", **WRONG), 401, "Bearer"),
    (delete("ann"), 404, "ann"),
    (delete("ben", {}), 401, "Bearer"),
    (delete("ben", BASIC), 401, "Bearer"),
    (put_labels("ben", ["a", "b"], WRONG), 401, "Bearer"),
    (put_labels("guest", ["a", "b"]), 422, "share"),
    (fit("ben", ["a"], ["b"], {}), 401, "Bearer"),
]


@pytest.mark.parametrize(("bad", "status", "says"), MISTAKES)
def test_a_bad_request_has_a_reason_that_names_no_other_tenant(bad, status, says, server):
    (response,) = server.ask(bad)
    reason = response.json()["error"]
    assert response.status_code == status, reason
    assert says in reason
    assert not any(name in reason for name in CHANGING if name != "ben")


def test_bytes_that_are_not_http_get_a_reason(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert list(json.loads(body)) == ["error"]


def set_keys(**keys):
    """Return a change that sets keys of a JSON file."""
    return lambda content: json.dumps(json.loads(content) | keys).encode()


def replace_by_header(content):
    """Return a change to a file of tensors with this header alone."""
    return lambda _: len(content).to_bytes(8, "little") + content


CONFIG, WEIGHTS, TASK = FILES
DAMAGES = [
    (WEIGHTS, lambda _: bytes(17 << 20), 413, "16,777,216"),
    (WEIGHTS, lambda content: content[:-9], 422, WEIGHTS),
    (WEIGHTS, lambda content: content[:-4] + b"\xff\xff\xff\x7f", 422, "finite"),
    (WEIGHTS, replace_by_header(b" " * 1_048_577), 413, "header"),
    (WEIGHTS, replace_by_header(b"[" + b"[]," * 30_000 + b"[]]"), 422, "header"),
    (CONFIG, set_keys(rank_shape=[4]), 422, ""),
    (CONFIG, set_keys(peft_type="nothing"), 422, "nothing"),
    (CONFIG, set_keys(modules_to_save=["classifier", "dropout"]), 422, "dropout"),
    (TASK, lambda _: b" " * 1_048_577, 413, "1,048,576"),
    (TASK, set_keys(max_length=0), 422, "max_length"),
    (TASK, set_keys(labels=["a", "b"]), 422, "labels"),
    (TASK, set_keys(labels=["a", "b", "c" * 201]), 422, "200"),
    (TASK, set_keys(template="{{ 9 ** 9 }}"), 422, "template"),
    ("../task.json", lambda _: b"{}", 422, TASK),
    ("adapter_model.bin", lambda _: b"\x80\x04N.", 422, WEIGHTS),
]


@pytest.mark.parametrize(("file", "change", "status", "says"), DAMAGES)
def test_a_bad_adapter_is_rejected_and_changes_nothing(file, change, status, says, server, there, expected):
    sent = files_of(there / "0/ben")
    changed = sent | {file: change(sent.get(file))}
    assert changed != sent
    (response,) = server.ask(put("ben", changed))
    assert response.status_code == status, response.text
    assert says in response.json()["error"]
    assert str(there) not in response.json()["error"]
    (again,) = server.ask(predict("ben", *TEXTS))
    check(again, expected("ben", TEXTS))


@pytest.mark.parametrize(("name", "status"), [("__base__", 422), ("a" * 256, 422), ("a" * 255, 200), ("東京 %2B", 200)])
def test_a_tenant_may_have_any_name_of_255_bytes(name, status, server, there, expected):
    added, asked, removed = (put(name, files_of(there / "0/ben")), predict(name, *TEXTS), delete(name))
    (response,) = server.ask(added)
    assert response.status_code == status, response.text
    if status == 200:
        (answered,) = server.ask(asked)
        check(answered, expected("ben", TEXTS))
        (gone,) = server.ask(removed)
        assert gone.status_code == 204
    assert count_tenants(server) == len(ALL)


def test_the_bearer_may_be_written_in_any_case(server, there):
    headers = {"Authorization": f"bearer {TOKEN}".encode()}
    (response,) = server.ask(put("ben", files_of(there / "0/ben"), headers))
    assert response.status_code == 200


def test_if_the_queue_is_full_requests_are_rejected_and_a_tenant_leaves_room_for_others(bank, tmp_path, expected):
    async def use(client):
        flood = [asyncio.create_task(send(client, predict("anna", *ASKED))) for _ in range(20)]
        for answered in asyncio.as_completed(flood):
            if (await answered).status_code == 429:
                break
        other = await send(client, predict("ben", *ASKED))
        return other, await asyncio.gather(*flood)

    room = str(2 * len(ASKED) + 8)
    with started(bank, tmp_path / "log", "--max-queue", room, "--max-batch-size", "4") as server:
        other, flood = server.call(use)
        crowd = server.ask(*(predict(name, *ASKED) for name in CHANGING))
    assert {response.status_code for response in crowd} == {200, 429}
    check(other, expected("ben", ASKED))
    of_anna = expected("anna", ASKED)
    counts = Counter(response.status_code for response in flood)
    assert counts[200] > 0 < counts[429]
    for response in flood:
        if response.status_code == 429:
            assert response.headers["Retry-After"] == "1"
        else:
            check(response, of_anna)


# The process.


def test_without_a_token_nothing_is_changed_and_a_strict_server_rejects_long_texts(bank, there, tmp_path, expected):
    with started(bank, tmp_path / "log", "--strict", token=None) as server:
        changes = [put("ben", files_of(there / "0/ben"), headers) for headers in (ALLOWED, {"Authorization": "Bearer"})]
        short, long, *changed = server.ask(predict("ben", *TEXTS[:3]), predict("ben", "a", *ODD[-1:]), *changes)
    check(short, expected("ben", TEXTS[:3]))
    assert long.status_code == 422
    assert "texts[1]" in long.json()["error"]
    assert [response.status_code for response in changed] == [401, 401]


def test_a_signal_to_stop_ends_the_process_after_what_was_asked_is_answered(bank, tmp_path, expected):
    with started(bank, tmp_path / "log", "--max-batch-size", "4") as server:

        async def use(client):
            asked = asyncio.create_task(together(client, *[predict("dora", *ASKED)] * 4))
            waiting = 0
            while not waiting:
                assert not asked.done()
                metrics = await send(client, Request("GET", "/metrics", {}))
                waiting = find_metric(metrics.text, "lsr_waiting_rows")
            server.stop()
            return await asked

        responses = server.call(use)
        server.process.join()
        assert server.process.exitcode in (0, -signal.SIGTERM)
    for response in responses:
        check(response, expected("dora", ASKED))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-batch-size", "0"], "--max-batch-size"),
        (["--max-queue", "x"], "--max-queue"),
        (["--max-length", "-1"], "--max-length"),
        (["--port", "70000"], "--port"),
        (["--host", "nohost.invalid"], "--host"),
        (["--base", "nothing"], "nothing"),
        (["--what"], "--what"),
    ],
)
def test_a_bad_option_is_rejected(words, says, bank):
    helpers.refused("lsr", "serve", bank, "--port", "0", *words, says=says)


@pytest.mark.parametrize("folder", ["nothing", "0/ben", "base"])
def test_a_folder_that_is_no_bank_is_rejected(folder, there):
    helpers.refused("lsr", "serve", there / folder, "--port", "0", says=folder)


def test_a_port_in_use_is_one_line(bank):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = helpers.run("lsr", "serve", bank, "--port", port)
    assert (ended.status, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
