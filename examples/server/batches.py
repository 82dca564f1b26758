"""Gather rows of different tenants into batches of one bank, in the order in which they come."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from lsr import AdapterBank
from lsr.serve.bank import Answer

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))


class Row(NamedTuple):
    """A text on its way through the bank."""

    adapter: str
    inputs: dict[str, list[int]]  # input_ids and what else the tokenizer gives
    said: "asyncio.Future[Answer]"


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(self, bank: AdapterBank, tokenizer: Any, rows: int, room: int, wait: float) -> None:
        self.bank, self.tokenizer = bank, tokenizer
        self._rows, self._room, self._wait = rows, room, wait
        self._waiting: asyncio.Queue[Row] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._waiting.qsize)

    async def predict(self, adapter: str, texts: list[dict[str, list[int]]]) -> list[Answer]:
        """Return what an adapter says of texts; refuse them all if there is no room for each."""
        if self._waiting.qsize() + len(texts) > self._room:
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})
        rows = [Row(adapter, inputs, asyncio.get_running_loop().create_future()) for inputs in texts]
        for row in rows:
            self._waiting.put_nowait(row)
        return await asyncio.gather(*(row.said for row in rows))

    async def in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return what a call returns that reads or changes the bank, made between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def run(self) -> None:
        """Pass batch after batch through the bank, until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            if self._waiting.qsize() < self._rows - 1:
                await asyncio.sleep(self._wait)
            while len(batch) < self._rows and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            BATCHES.observe(len(batch))
            try:
                answers = await self.in_turn(self._say, batch)
            except Exception as error:  # such as no memory for this batch: the next may be smaller
                answers = dict.fromkeys(range(len(batch)), error)
            for at, row in enumerate(batch):
                answer = answers.get(at, unknown(row.adapter))
                if row.said.done():  # cancelled
                    continue
                if isinstance(answer, Exception):
                    row.said.set_exception(answer)
                else:
                    row.said.set_result(answer)

    def _say(self, batch: list[Row]) -> dict[int, Answer]:
        there = {at: row for at, row in enumerate(batch) if row.adapter in self.bank.notes}
        if not there:
            return {}
        names = [row.adapter for row in there.values()]
        inputs = self.tokenizer.pad([row.inputs for row in there.values()], return_tensors="pt")
        with torch.no_grad():
            logits = self.bank(**inputs, adapter_names=names).logits
        return dict(zip(there, self.bank.answers(logits, names), strict=True))


def unknown(adapter: str) -> HTTPException:
    """Return the error for an adapter that is not in the bank, or has left it."""
    return HTTPException(404, f"no adapter is named {adapter[:100]!r}")
