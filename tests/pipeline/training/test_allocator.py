"""Memory that is freed and needed again costs no page fault, unless the user has set glibc otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from pipeline.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(2**20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before, is_kept = faults(), keep_freed_memory()
faults()
print(is_kept, before, min(faults() for _ in range(3)))  # now and then the heap grows once more
"""
PAGES = 8 * 2**22 // 4096  # of a round's blocks


def run(**environment):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=plain | environment, capture_output=True, text=True, check=True
    )
    is_kept, before, after = done.stdout.split()
    return is_kept == "True", int(before), int(after)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="there is no glibc")
def test_freed_memory_is_used_again_without_the_system():
    is_kept, before, after = run()
    assert is_kept
    assert before > PAGES
    assert after < PAGES / 100


def test_what_the_user_has_set_stays():
    assert not run(MALLOC_TRIM_THRESHOLD_="131072")[0]
