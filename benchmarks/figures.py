"""Publishes benchmark figures together with the machine on which they were measured."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from pipeline.arena.machine import made
from pipeline.core import artifacts, console


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: the machine, its current load, and versions."""
    return {**made(), "threads": threads, "load_average": round(os.getloadavg()[0], 2), "python": python_version()}


def use_threads(threads: int) -> None:
    """Let torch, and the BLAS of numpy, use so many threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def publish(path: Path, part: str, threads: int, measured: Iterable[Any]) -> None:
    """Measure rows, named tuples of one kind; print them, and write them as one part of a file with several."""
    where = machine(threads)  # with the load before the measurements
    rows = list(measured)  # an iterator measures now
    if rows:  # none, where no model is installed
        shown = [["–" if value is None else value for value in row] for row in rows]
        console.table(part, rows[0]._fields, shown)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[part] = {"machine": where, "figures": [_rounded(row._asdict()) for row in rows]}
    with artifacts.replacing(path) as temporary:
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in fields.items()}
