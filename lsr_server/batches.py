"""Schedule the batches of a bank: rows of different tenants share a batch, and tenants take turns."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple, TypeVar

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lsr_onnx.rows import ReplacedError, Result, TokenizedText
from lsr_onnx.runner import Runner
from lsr_server.rests import REST, Rest

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
# All rows of a batch take the time and memory of the largest of their adapters. So those with a rank or a number of
# labels above LARGE pass apart, and there rows times that are at most ROOM. While others are asked, large batches rest
# LARGE_REST times as long as they take, so they get a fifth of the time.
LARGE = 64
ROOM = 1024
LARGE_REST = 4.0
ASKED = 1.0  # seconds after a batch of others in which they are taken to be asked
MOST = 64 * 64  # texts of a request times the size of their adapter: their answers are made between two batches

Found = TypeVar("Found")  # result of a lookup for a request: the version of its adapter


class Waiting(NamedTuple):
    """A row that waits for a batch, with the future of its result."""

    row: TokenizedText
    result: "asyncio.Future[Result]"


async def answer_by_one_version(
    find: Callable[[], Found],
    answer: Callable[[Found], Awaitable[Response]],
) -> Response:
    """Answer a request by one version of its adapter: if it is replaced before the last row, all is read again."""
    while True:
        with suppress(ReplacedError):
            return await answer(find())


class BatchScheduler:
    """The batch scheduler of a bank, with its queue.

    One thread reads and changes the bank's tensors, so adapters are added, removed or replaced between two batches,
    never within one. `now` returns the seconds of a clock.
    """

    def __init__(
        self,
        passes: Runner,
        rows: int,
        room: int,
        wait: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._passes = passes
        self._rows = rows
        self._room = room
        self._wait = wait
        self._now = now
        # Waiting rows by adapter; the adapter whose turn it is comes first.
        self._waiting = OrderedDict[str, deque[Waiting]]()
        self._came = asyncio.Event()
        self._was_large = False
        self._large_rest = Rest(LARGE_REST, now)
        self._others_passed = -inf  # when the last batch of adapters that are not large has passed
        self._changing = asyncio.Lock()
        self._change_rest = Rest(REST, now)
        self._reading = asyncio.Lock()
        self._read_rest = Rest(LARGE_REST, now)
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._count)

    def _count(self) -> int:
        return sum(map(len, [*self._waiting.values()]))

    async def answers(self, rows: list[TokenizedText]) -> list[Result]:
        """Return the result of each row of one adapter; reject all if they do not fit into the queue.

        Raises:
            ReplacedError: if the adapter is replaced or removed before all rows are computed.
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
        """Reject rows if the adapter's size allows fewer, the queue is full, or the adapter already has half of it."""
        if count > 1 and count * size > MOST:
            raise HTTPException(422, f"at most {max(1, MOST // size)} at once for an adapter of this size")
        if count > self._room:
            raise HTTPException(422, f"at most {self._room} texts at once, by --max-queue")
        if self._is_full(adapter, count):
            self._drop()  # rows whose client has left hold no place
        if self._is_full(adapter, count):
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})

    def _is_full(self, adapter: str, count: int) -> bool:
        """Return whether the queue has no room for further rows of an adapter, which may have half of it."""
        own = len(self._waiting.get(adapter, ()))
        has_too_many = own > 0 and 2 * (own + count) > self._room
        return has_too_many or self._count() + count > self._room

    async def change(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a call that changes the bank, made between two batches after a pause."""
        async with self._changing:
            await asyncio.sleep(self._change_rest.remaining)
            return await self._in_turn(self._add_rest(self._change_rest, call), *args)

    async def read(self, call: Callable[[], Any]) -> Any:
        """Return the result of a call that reads the bank, made between two batches.

        While others are asked, such calls rest LARGE_REST times as long as they take.
        """
        async with self._reading:
            while self._seconds_until(self._read_rest) > 0:
                await asyncio.sleep(self._seconds_until(self._read_rest))
            return await self._in_turn(self._add_rest(self._read_rest, call))

    def _add_rest(self, rest: Rest, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call to begin a pause after it, as long as the call took."""

        def call_and_rest(*args: Any) -> Any:
            begin = self._now()
            try:
                return call(*args)
            finally:
                rest.begin(self._now() - begin)

        return call_and_rest

    async def _in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _call_safely, call, *args)

    async def run(self) -> None:
        """Run one batch after another, until cancelled."""
        while True:
            await self._came.wait()
            if self._count() < self._rows:
                await asyncio.sleep(self._wait)
            self._drop()
            batch = self._next()
            if batch:
                await self._pass(batch)
            elif self._waiting:  # large ones that rest, until others come
                self._came.clear()
                asyncio.get_running_loop().call_later(self._seconds_until(self._large_rest), self._came.set)
            if not self._waiting:
                self._came.clear()

    async def _pass(self, batch: list[Waiting]) -> None:
        BATCHES.observe(len(batch))
        answers = self._passes.answers
        if self._was_large:
            answers = self._add_rest(self._large_rest, answers)
        rows = [waiting.row._replace(is_unwanted=waiting.result.done) for waiting in batch]
        try:
            values = await self._in_turn(answers, rows)
        except Exception as error:  # the queue goes on
            values = [error] * len(rows)
        if not self._was_large:
            self._others_passed = self._now()
        for waiting, value in zip(batch, values, strict=True):
            result = waiting.result
            if result.done():  # cancelled
                continue
            if isinstance(value, Exception):
                result.set_exception(value)
            else:
                result.set_result(value)

    def _drop(self) -> None:
        """Drop rows whose client has left or whose adapter was replaced: the new one may be larger."""
        # Replaces the old mapping at once, because another thread counts.
        waiting_after = OrderedDict[str, deque[Waiting]]()
        for name, own in self._waiting.items():
            left = deque[Waiting]()
            for waiting in own:
                if waiting.result.done():
                    continue
                if waiting.row.version is self._passes.find_version(name):
                    left.append(waiting)
                else:
                    waiting.result.set_exception(ReplacedError())
            if left:
                waiting_after[name] = left
        self._waiting = waiting_after

    def is_busy(self) -> bool:
        """Return whether rows of adapters that are not large have passed shortly before."""
        return self._seconds_left_busy() > 0

    def _seconds_left_busy(self) -> float:
        """Return how long others are still taken to be asked; 0 if they are not."""
        return max(0.0, self._others_passed + ASKED - self._now())

    def _seconds_until(self, rest: Rest) -> float:
        """Return how long large batches or other reading must pause; 0 if no other rows are asked."""
        return min(self._seconds_left_busy(), rest.remaining)

    def _is_next_large(self, kinds: set[bool]) -> bool:
        """Return whether the next batch is for large adapters: small and large ones have separate batches."""
        if True not in kinds or self._seconds_until(self._large_rest) > 0:
            return False
        return len(kinds) == 1 or not self._was_large

    def _next(self) -> list[Waiting]:
        """Take the rows of the next batch, one adapter after the other, large ones separately; none during a pause."""
        sizes = {name: own[0].row.version.size for name, own in self._waiting.items()}
        is_large = self._is_next_large({size > LARGE for size in sizes.values()})
        self._was_large = is_large
        names = deque(name for name, size in sizes.items() if (size > LARGE) == is_large)
        batch = list[Waiting]()
        largest = 0
        while names and len(batch) < self._rows:
            name = names.popleft()
            largest = max(largest, sizes[name])
            if batch and is_large and largest * (len(batch) + 1) > ROOM:
                break
            own = self._waiting[name]
            batch.append(own.popleft())
            if own:  # it is the last now
                self._waiting.move_to_end(name)
                names.append(name)
            else:
                del self._waiting[name]
        return batch


def _call_safely(call: Callable[..., Any], *args: Any) -> Any:
    """Make a call in a thread, and raise any of its errors as one that a future can hold and the server answers.

    Raises:
        RuntimeError: in place of StopIteration, for which a future waits forever, and of errors that are no Exception,
            such as a panic in Rust.
    """
    try:
        return call(*args)
    except StopIteration as error:
        raise RuntimeError(repr(error)) from error
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(repr(error)) from error
