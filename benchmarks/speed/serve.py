"""What HTTP costs: `lsr serve` asked by many clients at once, each for one text, beside its bank alone."""

import asyncio
import os
import re
import subprocess
import sys
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from benchmarks.speed import many
from benchmarks.speed.figures import Row, ratio, take_turns
from pipeline import params
from pipeline.data import base_models

TENANTS, CLIENTS, TEXTS, ROUNDS = 256, 128, 2048, 3
TEXT = "The hotel was clean and quiet, the staff friendly, but the breakfast was cold and the coffee worse. "
REQUEST = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{}"


def run() -> list[Row]:
    """Return a row: texts a second of both, the median of their ratios within rounds, and seconds of a request."""
    tokenizer, bank = base_models.load_tokenizer(params.load_row("model", "minilm")), many.bank("LoRA r=8", TENANTS)

    def alone() -> None:
        for first in range(0, TEXTS, many.ROWS):
            names = [str(at % TENANTS) for at in range(first, min(first + many.ROWS, TEXTS))]
            with torch.no_grad():
                logits = bank(**tokenizer([TEXT] * len(names), return_tensors="pt"), adapter_names=names).logits
            bank.answers(logits, names)

    with TemporaryDirectory() as folder:
        bank.save(f"{folder}/bank")
        for one in (many.base(), tokenizer):
            one.save_pretrained(f"{folder}/base")
        command = [sys.executable, "-m", "lsr", "serve", f"{folder}/bank", "--base", f"{folder}/base", "--port", "0"]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
        with subprocess.Popen(command, env=os.environ | threads, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
            assert server.stderr is not None
            try:
                port, seconds = int(re.findall(r":(\d+): ", server.stderr.readline())[0]), list[float]()
                times = take_turns({"bank": alone, "server": lambda: asyncio.run(ask(port, seconds))}, ROUNDS)
            finally:
                server.terminate()
    of_hundred = quantiles(seconds[-ROUNDS * TEXTS :], n=100)
    rates = {f"{name}_per_second": TEXTS / median(its) for name, its in times.items()}
    share = ratio(times["bank"], times["server"])
    counts = {"tenants": TENANTS, "clients": CLIENTS, "texts": TEXTS}
    return [{**counts, **rates, "share": share, "median_seconds": of_hundred[49], "p99_seconds": of_hundred[98]}]


async def ask(port: int, seconds: list[float]) -> None:
    """Ask for all texts, and append the seconds of each request; a client library would take much of the cores."""
    numbers = iter(range(TEXTS))  # each is taken by the client that is free

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            body, begin = f'{{"adapter": "{number % TENANTS}", "texts": ["{TEXT}"]}}', perf_counter()
            writer.write(REQUEST.format(len(body), body).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            seconds.append(perf_counter() - begin)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
