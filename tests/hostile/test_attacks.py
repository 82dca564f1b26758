"""Attacks on a server in a process of its own: it answers others meanwhile, and its memory is what it was, afterwards.

Each attack is a function of the server. Some are of anybody, and some of somebody with the token.
"""

import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.hostile.serving import GROWN, HOST, SLOWEST, body
from tests.lsr.saved import save_lora
from tests.lsr.serve.asking import files

CLIENTS = 8
REFUSED = {413, 422}  # statuses of what is too large, or holds something that it may not


@pytest.fixture(scope="module")
def says(start, there):
    """A server that predicts."""
    return start(there / "bank", there)


@pytest.fixture(scope="module")
def writes(start, writers):
    """A server that writes after prompts."""
    return start(writers / "bank", writers)


@pytest.fixture(scope="module")
def fits(start, grouped):
    """A server that fits tenants to labeled texts."""
    return start(grouped / "bank", grouped)


def at_once(call, *arguments):
    """Call with each of the arguments at once, and return what the calls return."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return [*pool.map(call, arguments)]


def labelled(server, labels, **more):
    """The files of an adapter with these labels, which the server is sent."""
    folder = save_lora(server.folder / f"labels-{len(labels)}", "roberta", base=None, r=2, labels=len(labels))
    task_info = json.dumps({"columns": ["text"], "labels": labels} | more)
    return server.put(files(folder) | {"task.json": task_info.encode()})


def predict(server, counts, path="/v1/predict"):
    return at_once(lambda count: server.post(path, body("guest", *["a cat"] * count)), *counts)


def long_labels(server):
    status, _ = labelled(server, ["x" * 3_000_000, "y" * 3_000_000])
    assert status in REFUSED
    return predict(server, [64] * 3)


def labels_at_the_limits(server):
    labels = [f"{at:03}" + "\x01" * 197 for at in range(320)]  # of which JSON makes 6 times as many bytes
    assert labelled(server, labels, thresholds=[0.0] * 320) == (200, None)
    return predict(server, [12, 6, 5, 4] * 4)


def many_labels(server):
    assert labelled(server, [f"{at:06}" for at in range(10_000)]) == (200, None)
    return predict(server, [1] * 24)


def nobody_reads(server):
    """Thirty clients that ask for large answers and read nothing."""
    labels = [f"{at:03}" + "\x01" * 197 for at in range(320)]
    assert labelled(server, labels, thresholds=[0.0] * 320) == (200, None)
    content = body("guest", *["a cat"] * 5)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(30):
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect((HOST, server.port))
            silent.sendall(head + content)
        time.sleep(6)
        return server.memory


def large_bodies(server):
    bodies = ["[" + "[]," * ((1 << 20) // 3 - 2) + "[]]", "[" + "{}," * ((1 << 20) // 3 - 2) + "{}]"]
    return at_once(lambda content: server.post("/v1/predict", content.encode()), *bodies * CLIENTS)


def long_texts(server):
    """A text that is truncated, with as many characters as a request may have, and one with too many."""
    requests = [["a cat " * 6400], ["a cat " * 109_220]]
    return at_once(lambda texts: server.post("/v1/predict", body("anna", *texts)), *requests * CLIENTS)


def large_files(server):
    sent = files(server.folder / "0/ben")
    more = b'{"more": [' + b"[]," * 2_600_000 + b"[]]}"
    answers = at_once(server.put, *[sent | {"task.json": more}, sent | {"adapter_config.json": more}] * 3)
    assert {status for status, _ in answers} <= REFUSED
    return answers


def bytes_like_the_end_of_a_part(server):
    sent = files(server.folder / "0/ben") | {"adapter_model.safetensors": b"\r\n--" * (4 << 20 >> 1)}
    return at_once(server.put, *[sent] * 2)


def a_header_of_many_tensors(server):
    entries = (f'"{at:06}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for at in range(280_000))
    header = f"{{{','.join(entries)}}}".encode()
    content = len(header).to_bytes(8, "little") + header
    assert 15 << 20 < len(content) < 16 << 20
    answers = at_once(server.put, *[files(server.folder / "0/ben") | {"adapter_model.safetensors": content}] * 3)
    assert {status for status, _ in answers} <= REFUSED
    return answers


def an_index_of_many_values(server):
    """Weights in few bits, whose index is JSON of 8 MB that is deflated to some kB."""
    text = b'["3bit",{"a":[' + b"[]," * 2_600_000 + b"[]]}]"
    index = torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)
    sent = files(server.folder / "0/ben")
    del sent["adapter_model.safetensors"]
    weights = safetensors.torch.save({"index": index})
    answers = at_once(server.put, *[sent | {"adapter_rounded.safetensors": weights}] * 6)
    assert {status for status, _ in answers} <= REFUSED
    return answers


def fits_to_random_labels(server):
    """Fits that take long: no row of the head separates the texts."""
    random = np.random.default_rng(0)
    texts = [" ".join(["a cat"] * 19) + f" {number}" for number in range(200)]
    labels = ["good" if is_good else "bad" for is_good in random.random(len(texts)) < 0.5]
    content = json.dumps({"texts": texts, "labels": labels}).encode()
    answers = at_once(partial(server.fit, content), "guest", "other")
    assert {status for status, _ in answers} == {200}
    return answers


def many_stop_tokens(server):
    sent = files(server.folder / "a")
    put = server.put(sent | {"task.json": b'{"stop_token_ids": [' + b"7, " * 2_600_000 + b"7]}"})
    assert put[0] in REFUSED
    prompts = body("guest", *["the cat"] * 64, field="prompts", max_new_tokens=20)
    return put, server.post("/v1/generate", prompts)


def a_stop_token_that_no_integer_holds(server):
    put = server.put(files(server.folder / "a") | {"task.json": json.dumps({"stop_token_ids": [10**30]}).encode()})
    assert put[0] in REFUSED
    return put, server.post("/v1/generate", body("guest", "the cat", field="prompts", max_new_tokens=20))


def long_roles(server):
    message = {"role": "x" * 900_000, "content": "the cat"}
    content = body("t", [message], field="prompts", max_new_tokens=2)
    many = body("t", *[[{"role": "x" * 15_000, "content": "a"}]] * 64, field="prompts", max_new_tokens=2)
    return at_once(lambda sent: server.post("/v1/generate", sent), *[content, many] * CLIENTS)


ON = {
    "says": (
        long_labels,
        labels_at_the_limits,
        many_labels,
        nobody_reads,
        large_bodies,
        long_texts,
        large_files,
        bytes_like_the_end_of_a_part,
        a_header_of_many_tensors,
        an_index_of_many_values,
    ),
    "fits": (fits_to_random_labels,),
    "writes": (many_stop_tokens, a_stop_token_that_no_integer_holds, long_roles),
}


ORDINARY = {  # what another asks meanwhile
    "says": ("/v1/predict", body("anna", "a cat")),
    "fits": ("/v1/predict", body("acme", "a cat")),
    "writes": ("/v1/generate", body("a", "a cat", field="prompts", max_new_tokens=2)),
}


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.parametrize(("kind", "attack"), [(kind, attack) for kind, attacks in ON.items() for attack in attacks])
def test_others_are_answered_and_memory_is_what_it_was(kind, attack, request, trials, record_property):
    server = request.getfixturevalue(kind)
    trials["trials"] += 1
    path, ordinary = ORDINARY[kind]
    for _ in range(20):
        assert server.post(path, ordinary)[0] == 200
    before = server.memory
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(server.seconds, stop)
        answers = attack(server)
        stop.set()
        slowest = max(probing.result())
    assert server.post(path, ordinary)[0] == 200
    time.sleep(2)
    grown = server.memory / before
    measured = f"{attack.__name__}: /health at most {slowest:.2f} s, memory {before >> 20} -> {server.memory >> 20} MB"
    record_property("measured", f"{measured} ({answers!s:.200})")
    assert slowest < SLOWEST, measured
    assert grown < GROWN, measured
