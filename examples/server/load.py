"""What HTTP costs beside the bank alone: python -m examples.server.load artifacts/adapter.

Copies of an adapter stand for tenants. Texts pass through the bank in this process, in batches of 64 tenants, and then
through a server of the same bank, which many clients ask at once for one text each. Figures go to benchmarks/results.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import torch
from transformers.utils import logging

from benchmarks import figures
from lsr import AdapterBank
from lsr.loading.base_models import load_base, load_tokenizer
from lsr.loading.contents import read_contents
from lsr.tuner.files import read_config, read_tensors

PATH = figures.FOLDER / "server.json"
TENANTS, CLIENTS, REQUESTS = 256, 128, 2048
ROWS = 64  # of a batch, in both
TEXT = "The hotel was clean and quiet, the staff friendly, but the breakfast was cold and the coffee worse. "


class Load(NamedTuple):
    """One run: texts a second of both, and percentiles of a request's time."""

    tenants: int
    clients: int
    requests: int  # of one text each
    bank: float
    server: float
    median: float  # seconds
    p99: float


def run(bank: AdapterBank, tokenizer: Any, tenants: int) -> Load:
    """Measure the bank and its server."""
    start = perf_counter()
    for first in range(0, REQUESTS, ROWS):
        names = [str(at % tenants) for at in range(first, first + ROWS)]
        batch = tokenizer([TEXT] * ROWS, return_tensors="pt")
        with torch.no_grad():
            bank.answers(bank(**batch, adapter_names=names).logits, names)
    alone = REQUESTS / (perf_counter() - start)
    with serving(bank) as address:
        whole, seconds = asyncio.run(asked(address, tenants))
    median, p99 = map(float, np.percentile(seconds, [50, 99]))
    return Load(tenants, CLIENTS, REQUESTS, alone, REQUESTS / whole, median, p99)


@contextmanager
def serving(bank: AdapterBank) -> Iterator[str]:
    """Serve a bank in another process; yield its address when it answers."""
    with TemporaryDirectory() as folder, socket.socket() as free:
        bank.save(Path(folder, "bank"))
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        command = [sys.executable, "-m", "examples.server", Path(folder, "bank"), "--port", port]
        server = subprocess.Popen(command)  # noqa: S603
        try:
            while server.poll() is None:
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(port))):
                    break
                sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


async def asked(address: str, tenants: int) -> tuple[float, list[float]]:
    """Return the seconds that all requests take together, and those that each takes."""
    seconds, left = list[float](), iter(range(REQUESTS))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in left:
            start = perf_counter()
            body = {"adapter": str(number % tenants), "texts": [TEXT]}
            async with session.post(f"{address}/v1/predict", json=body, raise_for_status=True) as response:
                await response.json()
            seconds.append(perf_counter() - start)

    # It has both cores of a small machine to share with the server, so it must be a light one.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        start = perf_counter()
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        return perf_counter() - start, seconds


def main() -> None:
    """Measure some runs, and publish them."""
    parser = argparse.ArgumentParser(prog="python -m examples.server.load", description="Measure the server.")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--tenants", type=int, default=TENANTS, help="(%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(%(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fields = read_config(options.adapter)
    bank, contents = AdapterBank(load_base(fields, read_tensors(options.adapter))), read_contents(options.adapter)
    for tenant in range(options.tenants):
        bank.add(str(tenant), contents)
    tokenizer = load_tokenizer(fields, options.adapter)
    runs = (run(bank, tokenizer, options.tenants) for _ in range(options.runs))
    figures.publish(PATH, "load", torch.get_num_threads(), runs)


if __name__ == "__main__":
    main()
