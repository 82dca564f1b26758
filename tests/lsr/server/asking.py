"""A real `lsr serve` and its requests: whatever the tests know of the form of requests and answers is in this file.

Each response is validated against the description that the server itself gives.
"""

import asyncio
import multiprocessing
import os
import re
import resource
import runpy
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
from jsonschema import Draft202012Validator

TOKEN = "schlüssel"  # noqa: S105 of a server of a test
ALLOWED = {"Authorization": f"Bearer {TOKEN}".encode()}
FORK = multiprocessing.get_context("fork")  # of this process, which has imported torch already
FILES = ("adapter_config.json", "adapter_model.safetensors", "task.json")


class Request(NamedTuple):
    """A request: its method, its path, and further arguments of the client."""

    method: str
    path: str
    more: dict[str, Any]


class Server(NamedTuple):
    """A server that runs in a process of its own."""

    process: Any
    port: int
    log: Path

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        """Ask the process to end."""
        self.process.terminate()

    def ask(self, *requests):
        """Send requests at once; return the responses in order."""
        return self.call(lambda client: together(client, *requests))

    def call(self, use):
        """Return what an async function returns that is given a client, whose responses are validated."""

        async def call():
            limits = httpx2.Limits(max_connections=200)
            description = httpx2.get(f"{self.address}/openapi.json").json()
            hooks = {"response": [partial(check_described, description)]}
            options = {"base_url": self.address, "limits": limits, "timeout": 60, "event_hooks": hooks}
            async with httpx2.AsyncClient(**options) as client:
                return await use(client)

        return asyncio.run(call())


async def send(client, request):
    """Send one request."""
    return await client.request(request.method, request.path, **request.more)


async def together(client, *requests):
    """Send requests at once; return the responses in order."""
    return await asyncio.gather(*(send(client, request) for request in requests))


async def check_described(description, response):
    """Check that a response is one that the description has for its request; every error is one reason."""
    await response.aread()
    if response.status_code >= 400:
        reason = response.json()
        assert list(reason) == ["error"]
        assert reason["error"]
    operations = find_operations(description, response.url.path)
    method = response.request.method.lower()
    if method not in operations:
        assert response.status_code == (405 if operations else 404)
        return
    promised = operations[method]["responses"][str(response.status_code)]
    if "$ref" in promised:
        name = promised["$ref"].rpartition("/")[2]
        promised = description["components"]["responses"][name]
    for header in promised.get("headers", {}):
        assert header in response.headers
    check_content(description, promised.get("content", {}), response)


def find_operations(description, path):
    """Return the operations that a description has for a path, by method."""
    for template, operations in description["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        if re.fullmatch(pattern, path):
            return operations
    return {}


def check_content(description, contents, response):
    """Check that the body of a response has one of the described types, and matches its schema."""
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    assert kind in contents or not contents
    if kind in contents:
        value = response.json() if kind == "application/json" else response.text
        schema = contents[kind]["schema"] | {"components": description["components"]}
        Draft202012Validator(schema).validate(value)


@contextmanager
def started(bank, log, *words, token=TOKEN, files=None):
    """Yield a server of a bank once it can be asked; kill it at the end. Its process may open so many `files`."""
    log.touch()
    process = FORK.Process(target=_serve, args=(log, token, files, [str(bank), *words]))
    process.start()
    try:
        yield Server(process, _find_port(process, log), log)
    finally:
        process.kill()
        process.join()
    assert "Traceback" not in log.read_text()


def _serve(log, token, files, words):
    with log.open("wb", buffering=0) as written:
        os.dup2(written.fileno(), 2)
    os.closerange(3, 1024)  # of the process of the tests
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.pop("LSR_TOKEN", None)
    if token is not None:
        os.environ["LSR_TOKEN"] = token
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    sys.argv = ["lsr", "serve", *words, "--port", "0"]
    runpy.run_module("lsr", run_name="__main__", alter_sys=True)


def _find_port(process, log):
    """Return the port that a server prints as soon as it can be asked."""
    while True:
        line = re.search(r"^http://127\.0\.0\.1:(\d+)\b", log.read_text(), re.MULTILINE)
        if line:
            return int(line[1])
        assert process.is_alive(), log.read_text()
        time.sleep(0.02)


# The form of requests.


def predict(name, *texts):
    """Ask a tenant for its predictions of texts, or of pairs of texts."""
    return Request("POST", "/v1/predict", {"json": {"adapter": name, "texts": list(texts)}})


def put(name, files, headers=ALLOWED):
    """Add or replace a tenant by the files of an adapter."""
    return Request("PUT", f"/v1/adapters/{quote(name)}", {"files": files, "headers": headers})


def delete(name, headers=ALLOWED):
    """Remove a tenant."""
    return Request("DELETE", f"/v1/adapters/{quote(name)}", {"headers": headers})


def put_labels(name, labels, headers=ALLOWED):
    """Add or replace a tenant by its labels, or by None for a number."""
    return Request("PUT", f"/v1/tenants/{quote(name)}", {"json": {"labels": labels}, "headers": headers})


def fit(name, texts, labels, headers=ALLOWED):
    """Add or replace a tenant by labeled texts."""
    content = {"texts": texts, "labels": labels}
    return Request("POST", f"/v1/tenants/{quote(name)}/fit", {"json": content, "headers": headers})


def files_of(folder):
    """Return the files of an adapter as the parts of a form."""
    return {name: (folder / name).read_bytes() for name in FILES}


# The form of answers.


def read_answers(response):
    """Return the answer to each text: probabilities by label, or a number."""
    assert response.status_code == 200, response.text
    return [answer.get("probabilities", answer.get("number")) for answer in response.json()["answers"]]


def read_chosen(response):
    """Return for each text the label that applies, or a list of those that apply; None for a number."""
    return [answer.get("label", answer.get("labels")) for answer in response.json()["answers"]]


def count_truncated(response):
    """Return how many texts of a request were truncated."""
    return response.json()["truncated"]


def count_tenants(server):
    """Return how many tenants a server has, by its health check and by its metrics, which must agree."""
    health, metrics = server.ask(Request("GET", "/health", {}), Request("GET", "/metrics", {}))
    count = health.json()["adapters"]
    assert health.json()["status"] == "ok"
    assert find_metric(metrics.text, "lsr_adapters") == count
    return count


def find_metric(text, name):
    """Return the value of a metric in the text format of Prometheus."""
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def read_fit(response):
    """Return whether the head weights of a fit are used, their score, and that of the head weights before."""
    assert response.status_code == 200, response.text
    content = response.json()
    return content["answers"] == "fit", content["score"], content["group_score"]
