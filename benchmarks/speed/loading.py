"""Benchmark loading a bank from its file, and the part of computing checksums."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

from benchmarks.speed import many
from benchmarks.speed.figures import Row
from lsr import AdapterBank
from lsr.serve.file import FILE
from pipeline.core import console, digests

ROUNDS = 4
ADAPTERS = 1024
FORMS = (many.SMALLEST, "LoRA r=8")
GIGABYTE = 10**9


def run() -> Iterator[Row]:
    """Yield a row per form of adapters: the seconds to load their bank, and those of SHA-256 alone.

    Times are CPU seconds, the median of some rounds. The base model is already in memory, and the file in the operating
    system's cache.
    """
    for form in console.track(FORMS, "loading", "banks"):
        with TemporaryDirectory() as folder:
            many.bank(form, ADAPTERS).save(f"{folder}/bank")
            path = Path(folder, "bank", FILE)
            size = path.stat().st_size
            bases = [many.base() for _ in range(ROUNDS)]  # each becomes part of a bank
            loading = median(seconds_of(partial(AdapterBank.load, base, path.parent)) for base in bases)
            hashing = median(seconds_of(partial(digests.sha256, path)) for _ in range(ROUNDS))
        yield {
            "method": form,
            "adapters": ADAPTERS,
            "gigabytes": size / GIGABYTE,
            "load_seconds": loading,
            "checksum_seconds": hashing,
            "checksum_seconds_per_gigabyte": hashing / size * GIGABYTE,
        }


def seconds_of(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    begin = process_time()
    call()
    return process_time() - begin
