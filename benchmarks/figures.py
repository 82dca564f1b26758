"""Writes benchmark figures together with the machine on which they were measured."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.arena.machine import cpu
from pipeline.core import artifacts

FOLDER = Path("benchmarks/results")
PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "tensorly", "safetensors")


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: the machine, its current load, and versions."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def write(path: Path, part: str, where: Mapping[str, Any], measured: Iterable[Mapping[str, Any]]) -> None:
    """Write one part of a results file, leaving the others unchanged."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[part] = {"machine": where, "figures": [_rounded(figure) for figure in measured]}
    with artifacts.replacing(path) as temporary:
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in fields.items()}
