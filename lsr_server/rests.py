"""Pauses after work that keeps others waiting, so that a client that repeats it gets only part of the time."""

import time
from collections.abc import Callable

# A rest lasts this many times as long as the work before it. Python runs one thread at a time: without rests, clients
# that send large requests all the time would have half of a processor, and with them a tenth.
REST = 9.0


class Rest:
    """A pause after work, a multiple of its duration; `now` returns the seconds of a clock."""

    def __init__(self, times: float, now: Callable[[], float] = time.monotonic) -> None:
        self._times = times
        self._now = now
        self._until = now()

    @property
    def remaining(self) -> float:
        """The seconds until the next work may begin; 0 if it may begin now."""
        return max(0.0, self._until - self._now())

    def begin(self, seconds: float) -> None:
        """Begin the pause after work of this many seconds."""
        self._until = self._now() + self._times * seconds
