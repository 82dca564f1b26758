"""Memory that a training step frees stays with the process for the next step.

By default glibc returns large blocks to the system as soon as they are free, and the next step waits for the system to
clear them anew: 5 to 12 % of a step of MiniLM on a CPU, with whatever method. The highest memory is the same.
"""

import ctypes
import os
import platform

# From glibc's malloc.h; MMAP_THRESHOLD is the largest that it allows.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT = {TRIM_THRESHOLD: 2**30, TOP_PAD: 64 * 2**20, MMAP_THRESHOLD: 32 * 2**20}  # bytes


def keep_freed_memory() -> bool:
    """Have this process keep up to 1 GiB that it has freed; return whether it does so now.

    It does nothing without glibc, and where the environment sets glibc's thresholds itself.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(option, size) == 1 for option, size in KEPT.items())
