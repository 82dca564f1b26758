"""Work for a single request that would keep others waiting: one call at a time, and a rest after each."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lsr.serve.http.rests import REST, Rest


class Aside:
    """A thread for what is large: texts in JSON and files of adapters, which are read and written without a pause.

    `computed` returns the seconds that the thread has computed, and `now` those of a clock; `sleep` lets some pass.
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

    async def run(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns, made when those before it have been made and the thread has rested."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run_after_rest, call)

    def _run_after_rest(self, call: Callable[[], Any]) -> Any:
        remaining = self._rest.remaining
        if remaining:
            self._sleep(remaining)
        begin = self._computed()
        try:
            return call()
        finally:
            self._rest.begin(self._computed() - begin)
