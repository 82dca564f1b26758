"""The batches in which rows of different tenants pass through a bank, each tenant in turn."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from lsr.serve.passes import Passes, ReplacedError, Result, Row

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
# All rows of a batch take the time and memory of the largest of their adapters. So those with a rank or a number of
# labels above LARGE pass apart, in every other batch at most, and there rows times that are at most ROOM.
LARGE = 64
ROOM = 1024
MOST = 64 * 64  # texts of a request times the size of their adapter: their answers are made between two batches


class Waiting(NamedTuple):
    """A row that waits for a batch, and what gets its result."""

    row: Row
    result: "asyncio.Future[Result]"


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(
        self,
        passes: Passes,
        rows: int,
        room: int,
        wait: float,
    ) -> None:
        self._passes = passes
        self._rows = rows
        self._room = room
        self._wait = wait
        # Waiting rows by adapter; the adapter whose turn it is comes first.
        self._waiting: dict[str, deque[Waiting]] = {}
        self._came = asyncio.Event()
        self._was_large = False
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._count)

    def _count(self) -> int:
        return sum(map(len, [*self._waiting.values()]))

    async def answers(self, rows: list[Row]) -> list[Result]:
        """Return the result of each row of one adapter; refuse them all if there is no room for them.

        Raises:
            ReplacedError: if the adapter is replaced or removed before all rows have passed.
        """
        first = rows[0]
        self._check_room(first.adapter, first.version.size, len(rows))
        loop = asyncio.get_running_loop()
        results = [loop.create_future() for _ in rows]
        self._waiting.setdefault(first.adapter, deque()).extend(map(Waiting, rows, results))
        self._came.set()
        try:
            return await asyncio.gather(*results)
        finally:
            for result in results:  # if one fails, the others shall not pass
                result.cancel()

    def _check_room(
        self,
        adapter: str,
        size: int,
        count: int,
    ) -> None:
        """Refuse so many rows of an adapter if its size allows fewer, there is no room, or half of it is its own."""
        if count > 1 and count * size > MOST:
            raise HTTPException(422, f"at most {max(1, MOST // size)} at once for an adapter of this size")
        own = len(self._waiting.get(adapter, ()))
        if self._count() + count > self._room or (own and 2 * (own + count) > self._room):
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})

    async def in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a call that reads or changes the bank, made between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def run(self) -> None:
        """Pass batch after batch through the bank, until cancelled."""
        while True:
            await self._came.wait()
            if self._count() < self._rows:
                await asyncio.sleep(self._wait)
            self._drop()
            batch = self._next() if self._waiting else []
            if not self._waiting:
                self._came.clear()
            if batch:
                await self._pass(batch)

    async def _pass(self, batch: list[Waiting]) -> None:
        BATCHES.observe(len(batch))
        rows = [waiting.row._replace(is_unwanted=waiting.result.done) for waiting in batch]
        values = await self.in_turn(self._passes.answers, rows)
        for waiting, value in zip(batch, values, strict=True):
            result = waiting.result
            if result.done():  # cancelled
                continue
            if isinstance(value, Exception):
                result.set_exception(value)
            else:
                result.set_result(value)

    def _drop(self) -> None:
        """Drop rows whose result nobody awaits, and those whose adapter has been replaced: it may be larger now."""
        versions = self._passes.bank.versions
        waiting_before = self._waiting
        self._waiting = {}
        for name, own in waiting_before.items():
            left = deque[Waiting]()
            for waiting in own:
                if waiting.result.done():
                    continue
                if waiting.row.version is versions.get(name):
                    left.append(waiting)
                else:
                    waiting.result.set_exception(ReplacedError())
            if left:
                self._waiting[name] = left

    def _next(self) -> list[Waiting]:
        """Take the rows of a batch, one of each adapter in turn; those of large adapters apart."""
        sizes = {name: own[0].row.version.size for name, own in self._waiting.items()}
        kinds = {size > LARGE for size in sizes.values()}
        is_large = kinds.pop() if len(kinds) == 1 else not self._was_large
        self._was_large = is_large
        names = deque(name for name, size in sizes.items() if (size > LARGE) == is_large)
        batch = list[Waiting]()
        largest = 0
        while names and len(batch) < self._rows:
            name = names.popleft()
            largest = max(largest, sizes[name])
            if batch and is_large and largest * (len(batch) + 1) > ROOM:
                break
            own = self._waiting.pop(name)
            batch.append(own.popleft())
            if own:  # it is the last now
                self._waiting[name] = own
                names.append(name)
        return batch
