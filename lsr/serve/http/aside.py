"""Work for a single request that would keep others waiting: one call at a time, and a rest after each."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# A rest lasts this many times as long as the call before it has computed. Python runs one thread at a time: without
# rests, clients that send large requests all the time would have half of it, and with them a quarter.
REST = 3.0


class Aside:
    """A thread for large texts in JSON, which are parsed and rendered without a pause.

    `computed` returns the seconds that the thread has computed, and `now` those of a clock; `sleep` lets some pass.
    """

    def __init__(
        self,
        computed: Callable[[], float] = time.thread_time,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._computed = computed
        self._now = now
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1)
        self._rests_until = now()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns, made when those before it have been made and the thread has rested."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call_after_rest, call)

    def _call_after_rest(self, call: Callable[[], Any]) -> Any:
        rest = self._rests_until - self._now()
        if rest > 0:
            self._sleep(rest)
        begin = self._computed()
        try:
            return call()
        finally:
            self._rests_until = self._now() + REST * (self._computed() - begin)
