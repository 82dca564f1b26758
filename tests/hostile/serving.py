"""A server that is attacked: what it is sent, its memory, and how long it takes to answer."""

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.kit import resident

HOST = "127.0.0.1"
SLOWEST = 0.5  # seconds until /health answers
GROWN = 1.1  # memory after an attack, of that before


class Server(NamedTuple):
    """A server that runs, and folders with adapters for it."""

    process: int  # its id
    port: int
    folder: Path

    def post(self, path, content):
        """Post bytes, read the response, and return its status and its size."""
        connection = HTTPConnection(HOST, self.port, timeout=120)
        connection.request("POST", path, content)
        response = connection.getresponse()
        size = sum(map(len, iter(lambda: response.read(1 << 16), b"")))
        connection.close()
        return response.status, size

    def put(self, sent):
        """Send the files of an adapter, and return the status and the reason."""
        address = f"http://{HOST}:{self.port}/v1/adapters/guest"
        response = httpx2.put(address, files=sent, headers={"Authorization": "Bearer secret"}, timeout=120)
        return response.status_code, response.json().get("error")

    def fit(self, content, name):
        """Send labeled texts as JSON to fit a tenant, and return the status and what is answered."""
        address = f"http://{HOST}:{self.port}/v1/tenants/{name}/fit"
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        response = httpx2.post(address, content=content, headers=headers, timeout=300)
        return response.status_code, response.json()

    @property
    def memory(self):
        """Bytes that the process has in memory."""
        return resident(self.process)

    def seconds(self, stop):
        """The time until /health answers, again and again, until `stop` is set."""
        connection = HTTPConnection(HOST, self.port, timeout=120)
        taken = []
        while not stop.is_set():
            begin = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read().startswith(b'{"status":"ok"')
            taken.append(time.perf_counter() - begin)
            stop.wait(0.02)
        return taken


def body(name, *texts, field="texts", **more):
    return json.dumps({"adapter": name, field: texts} | more).encode()
