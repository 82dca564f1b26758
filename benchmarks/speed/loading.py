"""The time in which a bank is loaded from its file, and what computing the checksums takes of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.speed import many
from benchmarks.speed.figures import Row, take_turns
from lsr import AdapterBank
from lsr.serve.file import FILE
from pipeline.core import console

ROUNDS = 4
ADAPTERS = 1024
FORMS = (many.SMALLEST, "LoRA r=8")
GIGABYTE = 10**9


def run() -> Iterator[Row]:
    """Yield a row for each form of adapters: the seconds in which their bank is loaded, and those of SHA-256 alone.

    The base model is there already, and the file is in the memory of the operating system.
    """
    for form in console.track(FORMS, "loading", "banks"):
        with TemporaryDirectory() as folder:
            many.bank(form, ADAPTERS).save(f"{folder}/bank")
            path = Path(folder, "bank", FILE)
            size = path.stat().st_size
            bases = iter([many.base() for _ in range(ROUNDS + 1)])  # each becomes part of a bank
            calls = {
                "load": lambda bases=bases, folder=folder: AdapterBank.load(next(bases), f"{folder}/bank"),
                "checksums": lambda path=path: digest(path),
            }
            times = take_turns(calls, ROUNDS)
        seconds = {name: median(values) for name, values in times.items()}
        yield {
            "method": form,
            "adapters": ADAPTERS,
            "gigabytes": size / GIGABYTE,
            "load_seconds": seconds["load"],
            "checksum_seconds": seconds["checksums"],
            "checksum_seconds_per_gigabyte": seconds["checksums"] / size * GIGABYTE,
        }


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
