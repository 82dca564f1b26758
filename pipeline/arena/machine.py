"""The machine, commit and versions behind a record, without which figures of two machines cannot be compared."""

import os
import platform
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from dulwich.errors import NotGitRepository
from dulwich.repo import Repo

PACKAGES = ("torch", "transformers", "peft")


@cache
def made() -> dict[str, str]:
    """Return the commit, the date, the processor, the GPU if there is one, and versions."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu(),
        "cores": str(os.cpu_count()),
        **gpu,
        **{package: version(package) for package in PACKAGES},
    }


def cpu() -> str:
    """Return the name of the processor."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def clock() -> float:
    """Return seconds of processor time, which other work on the machine does not count in; of a GPU, of the wall."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def forget_peak() -> None:
    """Reset `peak_bytes`, where the system has it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not count it."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _commit() -> str:
    """Return the commit that is checked out, whether or not files have changed since."""
    try:
        return Repo.discover().head().decode()[:12]
    except (NotGitRepository, KeyError):
        return "none"
