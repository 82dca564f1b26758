"""Rests after work that keeps others waiting: a client that asks for it all the time gets a part of the time alone."""

import time
from collections.abc import Callable

# A rest lasts this many times as long as the work before it. Python runs one thread at a time: without rests, clients
# that send large requests all the time would have half of a processor, and with them a tenth.
REST = 9.0


class Rest:
    """The rest after some work, so many times as long as it; `now` returns the seconds of a clock."""

    def __init__(self, times: float, now: Callable[[], float] = time.monotonic) -> None:
        self._times = times
        self._now = now
        self._until = now()

    @property
    def remaining(self) -> float:
        """The seconds until the next work may begin; 0 if it may begin now."""
        return max(0.0, self._until - self._now())

    def begin(self, seconds: float) -> None:
        """Begin the rest after work that has taken so many seconds."""
        self._until = self._now() + self._times * seconds
