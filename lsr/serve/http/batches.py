"""Gather rows of different tenants into batches of one bank, in the order in which they come."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from lsr.serve.passes import Passes, Row, Said

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(self, passes: Passes, rows: int, room: int, wait: float) -> None:
        self._passes, self._rows, self._room, self._wait = passes, rows, room, wait
        self._waiting: asyncio.Queue[tuple[Row, asyncio.Future[Said]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._waiting.qsize)

    async def answers(self, rows: list[Row]) -> list[Said]:
        """Return what each row gets; refuse them all if there is no room for each."""
        if self._waiting.qsize() + len(rows) > self._room:
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in rows]
        for asked in zip(rows, answers, strict=True):
            self._waiting.put_nowait(asked)
        return await asyncio.gather(*answers)

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
            found = await self.in_turn(self._passes.answers, [row for row, _ in batch])
            for (_, answer), its in zip(batch, found, strict=True):
                if not answer.done():  # nor cancelled
                    (answer.set_exception if isinstance(its, Exception) else answer.set_result)(its)
