"""Freed memory goes back to the system: the C library would keep much of what an attack took for a while."""

import asyncio
import ctypes

ARENA_MAX = -8  # glibc's number of the option
ARENAS = 2  # memory arenas shared by all threads; glibc's default is eight per core, and each keeps freed pieces
BETWEEN = 5  # seconds; looking for free memory takes less than a millisecond where there is none


def take_from_few_arenas() -> None:
    """Have threads share arenas, if the C library is one that has them: glibc; before there are threads."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(ARENA_MAX, ARENAS)


async def give_back() -> None:
    """Give free memory back to the system, in a thread of its own, if the C library is one that keeps it: glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        await asyncio.to_thread(trim, 0)
