"""What HTTP costs beside the bank alone: python -m examples.server.load artifacts/adapter --tenants 256.

Copies of an adapter stand for tenants. Texts pass through the bank in this process, in batches of 64 tenants, and then
through a server of the same bank, which many clients ask at once for one text each. Prints texts a second of both, and
percentiles of a request's time.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import httpx2
import numpy as np
import torch
from transformers.utils import logging

from lsr import AdapterBank
from lsr.loading.base_models import load_base, load_tokenizer
from lsr.loading.contents import read_contents
from lsr.loading.files import read_config, read_tensors

ROWS = 64  # of a batch, in both
TEXT = "The hotel was clean and quiet, the staff friendly, but the breakfast was cold and the coffee worse. "


async def asked(address: str, tenants: int, clients: int, requests: int) -> tuple[float, list[float]]:
    """Return the seconds that all requests take, from so many clients, and those that each takes."""
    seconds, left = list[float](), iter(range(requests))
    limits = httpx2.Limits(max_connections=clients)

    async def client(session: httpx2.AsyncClient) -> None:
        for number in left:
            start = perf_counter()
            body = {"adapter": str(number % tenants), "texts": [TEXT]}
            (await session.post(f"{address}/v1/predict", json=body)).raise_for_status()
            seconds.append(perf_counter() - start)

    async with httpx2.AsyncClient(limits=limits, timeout=60) as session:
        start = perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return perf_counter() - start, seconds


def main() -> None:
    """Measure both and print a line for each."""
    parser = argparse.ArgumentParser(description="Measure the server beside the bank alone.")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--tenants", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=2048, help="of one text each (%(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fields = read_config(options.adapter)
    bank, contents = AdapterBank(load_base(fields, read_tensors(options.adapter))), read_contents(options.adapter)
    for tenant in range(options.tenants):
        bank.add(str(tenant), contents)
    tokenizer = load_tokenizer(fields, options.adapter)
    assert tokenizer is not None
    with TemporaryDirectory() as folder:
        bank.save(Path(folder, "bank"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        start = perf_counter()
        for first in range(0, options.requests, ROWS):
            names = [str(at % options.tenants) for at in range(first, min(first + ROWS, options.requests))]
            batch = tokenizer([TEXT] * len(names), return_tensors="pt")
            with torch.no_grad():
                bank.answers(bank(**batch, adapter_names=names).logits, names)
        alone = options.requests / (perf_counter() - start)
        print(f"the bank alone: {alone:.0f} texts a second", flush=True)
        command = [sys.executable, "-m", "examples.server", Path(folder, "bank"), "--port", port]
        server = subprocess.Popen(command)  # noqa: S603
        try:
            address = f"http://127.0.0.1:{port}"
            while server.poll() is None:
                try:
                    httpx2.get(f"{address}/health")
                    break
                except httpx2.ConnectError:
                    sleep(0.2)
            whole, seconds = asyncio.run(asked(address, options.tenants, options.clients, options.requests))
        finally:
            server.terminate()
            server.wait()
    p50, p99 = np.percentile(seconds, [50, 99])
    served = options.requests / whole
    print(f"the server: {served:.0f} texts a second, {served / alone:.2f} of it; p50 {p50:.3f} s, p99 {p99:.3f} s")


if __name__ == "__main__":
    main()
