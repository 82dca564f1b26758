"""Attacks on a server in a process of its own: it answers others meanwhile, and its memory is what it was, afterwards.

Each attack is a function of the server. Some are of anybody, and some of somebody with the token.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lsr import AdapterBank
from tests import architectures
from tests.hostile.test_server import PAGE
from tests.lsr.saved import save_lora
from tests.lsr.serve.asking import files
from tests.lsr.serve.conftest import there  # noqa: F401 a fixture
from tests.workspace import ROOT

SLOWEST = 0.5  # seconds until /health answers
GROWN = 1.1  # memory after an attack, of that before
TEMPLATE = "{% for message in messages %}{{ message['role'] }}{{ message['content'] }}{% endfor %}"
CLIENTS = 8
REFUSED = {413, 422}  # statuses of what is too large, or holds something that it may not


class Server(NamedTuple):
    """A server that runs, and folders with adapters for it."""

    pid: int
    host: str
    port: int
    folder: Path

    def post(self, path, content):
        """Post bytes, read the response, and return its status and its size."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        connection.request("POST", path, content)
        response = connection.getresponse()
        size = sum(map(len, iter(lambda: response.read(1 << 16), b"")))
        connection.close()
        return response.status, size

    def put(self, sent):
        """Send the files of an adapter, and return the status and the reason."""
        address = f"http://{self.host}:{self.port}/v1/adapters/guest"
        response = httpx2.put(address, files=sent, headers={"Authorization": "Bearer secret"}, timeout=120)
        return response.status_code, response.json().get("error")

    @property
    def memory(self):
        """Bytes that the process has in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def seconds(self, stop):
        """The time until /health answers, again and again, until `stop` is set."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        taken = []
        while not stop.is_set():
            begin = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read().startswith(b'{"status":"ok"')
            taken.append(time.perf_counter() - begin)
            stop.wait(0.02)
        return taken


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts a server of a bank and returns it."""
    with ExitStack() as stack:

        def started(bank, folder):
            log = tmp_path_factory.mktemp("log") / "log"
            environment = os.environ | {"LSR_TOKEN": "secret", "OMP_NUM_THREADS": "1"}
            environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", str(ROOT))
            words = [sys.executable, "-m", "lsr", "serve", bank, "--port", "0", "--max-tokens", "40"]
            with log.open("w") as file:
                process = subprocess.Popen([*words, "--new-tokens", "20"], env=environment, stderr=file)
            stack.callback(process.wait)
            stack.callback(process.kill)
            while not (found := re.search(r"http://(127\.0\.0\.1):(\d+): ", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            return Server(process.pid, found[1], int(found[2]), folder)

        yield started


@pytest.fixture(scope="module")
def says(start, there):  # noqa: F811
    """A server that predicts."""
    return start(there / "bank", there)


@pytest.fixture(scope="module")
def writes(start, writers):
    """A server that writes after prompts."""
    return start(writers / "bank", writers)


@pytest.fixture(scope="session")
def writers(tmp_path_factory):
    """A folder with a bank that writes after prompts; of adapter `t` the prompts are conversations."""
    folder = tmp_path_factory.mktemp("writers")
    architectures.save(folder / "base", "gpt2", n_positions=64)
    edited = json.loads((folder / "base/tokenizer_config.json").read_text()) | {"model_max_length": 64}
    (folder / "base/tokenizer_config.json").write_text(json.dumps(edited))
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(folder / "base"))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).save_pretrained(folder / "a")
    bank.add("a", folder / "a")
    bank.add("t", folder / "a", note={"template": TEMPLATE})
    bank.save(folder / "bank")
    return folder


def body(name, *texts, field="texts", **more):
    return json.dumps({"adapter": name, field: texts} | more).encode()


def at_once(call, *arguments):
    """Call with each of the arguments at once, and return what the calls return."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return [*pool.map(call, arguments)]


def labelled(server, labels, **more):
    """The files of an adapter with these labels, which the server is sent."""
    folder = save_lora(server.folder / f"labels-{len(labels)}", "roberta", base=None, r=2, labels=len(labels))
    note = json.dumps({"columns": ["text"], "labels": labels} | more)
    return server.put(files(folder) | {"task.json": note.encode()})


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
            silent.connect((server.host, server.port))
            silent.sendall(head + content)
        time.sleep(6)
        return server.memory


def large_bodies(server):
    bodies = ["[" + "[]," * ((1 << 20) // 3 - 2) + "[]]", "[" + "{}," * ((1 << 20) // 3 - 2) + "{}]"]
    return at_once(lambda content: server.post("/v1/predict", content.encode()), *bodies * CLIENTS)


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


def many_stop_tokens(server):
    sent = files(server.folder / "a")
    put = server.put(sent | {"task.json": b'{"ends": [' + b"7, " * 2_600_000 + b"7]}"})
    assert put[0] in REFUSED
    prompts = body("guest", *["the cat"] * 64, field="prompts", new_tokens=20)
    return put, server.post("/v1/generate", prompts)


def a_stop_token_that_no_integer_holds(server):
    put = server.put(files(server.folder / "a") | {"task.json": json.dumps({"ends": [10**30]}).encode()})
    assert put[0] in REFUSED
    return put, server.post("/v1/generate", body("guest", "the cat", field="prompts", new_tokens=20))


def long_roles(server):
    message = {"role": "x" * 900_000, "content": "the cat"}
    content = body("t", [message], field="prompts", new_tokens=2)
    many = body("t", *[[{"role": "x" * 15_000, "content": "a"}]] * 64, field="prompts", new_tokens=2)
    return at_once(lambda sent: server.post("/v1/generate", sent), *[content, many] * CLIENTS)


ON = {
    "says": (
        long_labels,
        labels_at_the_limits,
        many_labels,
        nobody_reads,
        large_bodies,
        large_files,
        bytes_like_the_end_of_a_part,
        a_header_of_many_tensors,
        an_index_of_many_values,
    ),
    "writes": (many_stop_tokens, a_stop_token_that_no_integer_holds, long_roles),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "attack"), [(kind, attack) for kind, attacks in ON.items() for attack in attacks])
def test_others_are_answered_and_memory_is_what_it_was(kind, attack, request, trials, record_property):
    server = request.getfixturevalue(kind)
    trials["trials"] += 1
    path, name, more = ("/v1/predict", "anna", {}) if kind == "says" else ("/v1/generate", "a", {"new_tokens": 2})
    ordinary = body(name, "a cat", field="prompts" if more else "texts", **more)
    for _ in range(20):
        assert server.post(path, ordinary)[0] == 200
    before, stop = server.memory, threading.Event()
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(server.seconds, stop)
        found = attack(server)
        stop.set()
        slowest = max(probing.result())
    assert server.post(path, ordinary)[0] == 200
    time.sleep(2)
    grown = server.memory / before
    measured = f"{attack.__name__}: /health at most {slowest:.2f} s, memory {before >> 20} -> {server.memory >> 20} MB"
    record_property("measured", f"{measured} ({found!s:.200})")
    assert slowest < SLOWEST, measured
    assert grown < GROWN, measured
