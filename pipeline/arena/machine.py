"""The machine, commit and versions behind a record, without which figures of two machines cannot be compared."""

import os
import platform
import time
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
        "cpu": _cpu(),
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


def _cpu() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit() -> str:
    """Return the commit that is checked out, whether or not files have changed since."""
    try:
        return Repo.discover().head().decode()[:12]
    except (NotGitRepository, KeyError):
        return "none"
