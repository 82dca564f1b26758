"""Gather rows of different tenants into batches of one bank, a row of each in turn."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from lsr.serve.passes import Passes, Row, Said

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
# All rows of a batch take the time and memory of the largest of their adapters. So those with a rank or a number of
# labels above LARGE pass apart, in every other batch at most, and there rows times that are at most ROOM.
LARGE, ROOM = 64, 1024
MOST = 64 * 64  # texts of a request times the size of their adapter: writing a longer answer would keep others waiting

Asked = tuple[Row, "asyncio.Future[Said]", int]  # the size of its adapter


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(self, passes: Passes, rows: int, room: int, wait: float) -> None:
        self._passes, self._rows, self._room, self._wait = passes, rows, room, wait
        self._waiting: dict[str, deque[Asked]] = {}  # by adapter, first who is next
        self._came, self._was_large = asyncio.Event(), False
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._count)

    def _count(self) -> int:
        return sum(map(len, [*self._waiting.values()]))

    async def answers(self, rows: list[Row]) -> list[Said]:
        """Return what each row of an adapter gets; refuse them all if there is no room, or half of it is its own.

        Raises:
            InputError: if the adapter has left the bank.
        """
        size = await asyncio.to_thread(self._passes.bank.size, name := rows[0].adapter)
        if len(rows) > 1 and len(rows) * size > MOST:
            raise HTTPException(422, f"at most {max(1, MOST // size)} at once for an adapter of this size")
        own = self._waiting.get(name, ())
        if self._count() + len(rows) > self._room or (own and 2 * (len(own) + len(rows)) > self._room):
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in rows]
        self._waiting.setdefault(name, deque()).extend((*asked, size) for asked in zip(rows, answers, strict=True))
        self._came.set()
        return await asyncio.gather(*answers)

    async def in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return what a call returns that reads or changes the bank, made between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def run(self) -> None:
        """Pass batch after batch through the bank, until cancelled."""
        while True:
            await self._came.wait()
            if self._count() < self._rows:
                await asyncio.sleep(self._wait)
            batch = self._next()
            if not self._waiting:
                self._came.clear()
            BATCHES.observe(len(batch))
            found = await self.in_turn(self._passes.answers, [row for row, *_ in batch])
            for (_, answer, _), its in zip(batch, found, strict=True):
                if not answer.done():  # nor cancelled
                    (answer.set_exception if isinstance(its, Exception) else answer.set_result)(its)

    def _next(self) -> list[Asked]:
        """Take the rows of a batch, one of each adapter in turn; those of large ones apart."""
        sizes = {name: its[0][-1] for name, its in self._waiting.items()}
        kinds = {size > LARGE for size in sizes.values()}
        self._was_large = not self._was_large if len(kinds) > 1 else kinds.pop()
        names = deque(name for name, size in sizes.items() if (size > LARGE) == self._was_large)
        batch, largest = list[Asked](), 0
        while names and len(batch) < self._rows:
            largest = max(largest, sizes[name := names.popleft()])
            if batch and self._was_large and largest * (len(batch) + 1) > ROOM:
                break
            own = self._waiting.pop(name)
            batch.append(own.popleft())
            if own:  # it is the last now
                self._waiting[name] = own
                names.append(name)
        return batch
