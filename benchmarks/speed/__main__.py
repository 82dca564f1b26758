"""The cost of adapters: steps of LoRA by PEFT and LSR, many adapters in a batch and over HTTP, and models that write.

Results are in benchmarks/results/speed.json.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.speed import figures, generate, lora, many, serve
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import exit_on_error

PARTS: dict[str, Any] = {
    "lora": lora,
    "many": many,
    "serve": serve,
    "generate": generate,
}  # modules, whose `run` measures
RESULTS = Path("benchmarks/results/speed.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts."""
    parser, count = Parser("python -m benchmarks.speed", __doc__), os.cpu_count() or 1
    parser.add_argument("part", nargs="?", choices=PARTS, help="(all)")
    parser.add_argument("--threads", type=whole_number(1, 256), metavar="N", default=count, help="(%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)  # of the BLAS of numpy
    with exit_on_error("stopped; parts that are done are kept"):
        for part in [options.part] if options.part else PARTS:
            figures.publish(RESULTS, part, options.threads, PARTS[part].run())


if __name__ == "__main__":
    main()
