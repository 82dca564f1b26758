"""Measure the cost of adapters: LoRA training steps, many adapters in a batch, a file and over HTTP, generation.

Results are in benchmarks/results/speed.json.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from platform import python_version

import torch
from threadpoolctl import threadpool_limits

from benchmarks.speed import generate, graphs, loading, lora, many
from pipeline.arena.record import describe_provenance
from pipeline.core import artifacts, console
from pipeline.core.console import Parser, whole_number
from pipeline.tasks.cells import round_significant

PARTS = {
    "lora": lora.run,
    "many": many.run,
    "load": loading.run,
    "serve": many.over_http,
    "onnx": graphs.run,
    "serve-onnx": graphs.over_http,
    "generate": generate.run,
}
DIGITS = 6  # significant ones
RESULTS = Path("benchmarks/results/speed.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts."""
    parser = Parser(
        "python -m benchmarks.speed",
        "Measure the time and memory that adapters take: training steps compared with PEFT's LoRA, many adapters in a "
        f"batch, loading and serving a bank, and generation. Writes {RESULTS}.",
    )
    count = os.cpu_count() or 1
    parser.add_argument("part", nargs="?", choices=PARTS, help="part to measure (default: all)")
    threads = "number of CPU threads (default: one per core)"
    parser.add_argument("--threads", type=whole_number(1, 256), metavar="N", default=count, help=threads)
    with parser.parse(arguments, "stopped; parts that are done are kept") as options:
        torch.set_num_threads(options.threads)
        threadpool_limits(options.threads)  # limits the threads of numpy's BLAS
        for part in [options.part] if options.part else PARTS:
            measure(part, options.threads)


def measure(part: str, threads: int) -> None:
    """Measure the rows of one part, print them, and write them to the common file, with the machine."""
    load = round(os.getloadavg()[0], 2)  # before the measurements
    rows = list(PARTS[part]())
    if rows:  # none, where no model is installed
        console.table(part, list(rows[0]), [list(row.values()) for row in rows])
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known[part] = {
        "machine": {**describe_provenance(), "threads": threads, "load_average": load, "python": python_version()},
        "figures": json.loads(json.dumps(rows), parse_float=lambda text: round_significant(float(text), DIGITS)),
    }
    with artifacts.replace_atomically(RESULTS) as temporary:
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
