"""Run long work of single requests outside the event loop: one call at a time, with a pause after each."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lsr_server.answers import SMALL
from lsr_server.rests import REST, Rest


class Aside:
    """A thread for large JSON texts and adapter files, which are read and written without interruption.

    `computed` returns the thread's CPU seconds, `now` the seconds of a clock, and `sleep` waits.
    """

    def __init__(
        self,
        computed: Callable[[], float] = time.thread_time,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._computed = computed
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1)
        self._rest = Rest(REST, now)

    async def run_if_large(self, size: int, call: Callable[[], Any]) -> Any:
        """Return the result of a call on this many bytes of JSON: made at once if they are few, or else by `run`."""
        return call() if size <= SMALL else await self.run(call)

    async def run_in_thread(self, call: Callable[[], Any], *, is_long: bool) -> Any:
        """Return the result of a call, made by `run` if it is long, or else at once in a thread of its own."""
        return await (self.run(call) if is_long else asyncio.to_thread(call))

    async def run(self, call: Callable[[], Any], count_rested: Callable[[], float] = lambda: 0.0) -> Any:
        """Return the result of a call, made after earlier calls and a pause.

        `count_rested` returns the CPU seconds of the call after which it has rested itself.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run_after_rest, call, count_rested)

    def _run_after_rest(self, call: Callable[[], Any], count_rested: Callable[[], float]) -> Any:
        remaining = self._rest.remaining
        if remaining:
            self._sleep(remaining)
        begin = self._computed()
        try:
            return call()
        finally:
            spent = self._computed() - begin
            self._rest.begin(spent - count_rested())
