"""Return freed memory to the system, which glibc would otherwise keep for a while after an attack."""

import asyncio
import ctypes

ARENA_MAX = -8  # glibc's number of the option
ARENAS = 2  # memory arenas shared by all threads; glibc's default is eight per core, and each keeps freed pieces
BETWEEN = 5  # seconds; looking for free memory takes less than a millisecond where there is none


def take_from_few_arenas() -> None:
    """Let threads share few memory arenas (glibc only); call it before threads start."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(ARENA_MAX, ARENAS)


async def give_back() -> None:
    """Return free memory to the system, in a thread of its own (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        await asyncio.to_thread(trim, 0)
