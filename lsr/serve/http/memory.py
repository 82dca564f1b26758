"""Freed memory goes back to the system: the C library would keep much of what an attack took for a while."""

import asyncio
import ctypes

BETWEEN = 5  # seconds; looking for free memory takes less than a millisecond where there is none


async def give_back() -> None:
    """Give free memory back to the system, in a thread of its own, if the C library is one that keeps it: glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        await asyncio.to_thread(trim, 0)
