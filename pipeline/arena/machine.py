"""The machine, commit and versions behind a record, without which figures of two machines cannot be compared."""

import os
import platform
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
        "cpu": _in_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        **gpu,
        **{package: version(package) for package in PACKAGES},
    }


def clock() -> float:
    """Return processor time in seconds, which excludes other work on the machine; wall time on a GPU."""
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
    found = _in_proc("self/status", "VmHWM")
    return int(found.split()[0]) * 1024 if found else None


def _in_proc(file: str, name: str) -> str | None:
    """Return the first value of a name in a file below /proc; None where the system has none."""
    path = Path("/proc", file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _commit() -> str:
    """Return the commit that is checked out, whether or not files have changed since."""
    try:
        return Repo.discover().head().decode()[:12]
    except (NotGitRepository, KeyError):
        return "none"
