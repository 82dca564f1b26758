"""Times of calls that take turns, and their publication together with the machine on which they were measured."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from platform import python_version
from time import perf_counter
from typing import Any

import torch

from pipeline.arena.record import made
from pipeline.core import artifacts, console

Times = dict[str, list[float]]  # seconds, one per round, by method
Row = dict[str, Any]  # figures by name; what is unknown is None


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Return the seconds of each call in each round, after one round that is not timed.

    What slows down a round slows down all its calls, so ratios are stable.
    """
    times: Times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(perf_counter() - begin)
    return times


def publish(path: Path, part: str, threads: int, measured: Iterable[Row]) -> None:
    """Measure rows of one kind; print them, and write them as one part of a file with several."""
    load = round(os.getloadavg()[0], 2)  # before the measurements
    rows = list(measured)  # an iterator measures now
    if rows:  # none, where no model is installed
        shown = [["–" if value is None else value for value in row.values()] for row in rows]
        console.table(part, list(rows[0]), shown)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[part] = {
        "machine": {**made(), "threads": threads, "load_average": load, "python": python_version()},
        "figures": [
            {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ],
    }
    with artifacts.replacing(path) as temporary:
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
