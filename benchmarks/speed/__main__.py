"""The cost of adapters in time and memory: training steps of LoRA by PEFT and by LSR, and many adapters in a batch.

Results are in benchmarks/results/speed.json.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.speed import lora, many
from pipeline.core import console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import exit_on_error
from pipeline.training.arguments import has_fast_bf16

PARTS = ("lora", "many")
RESULTS = Path("benchmarks/results/speed.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts.

    Raises:
        SystemExit: with code 2 after a mistake on the command line, 130 after Ctrl-C.
    """
    options = _options(arguments)
    figures.use_threads(options.threads)
    with exit_on_error("stopped; parts that are done are kept"):
        for part in options.parts or PARTS:
            rows: Iterator[Any] = many.run() if part == "many" else lora.run(affordable(lora.CASES))
            figures.publish(RESULTS, part, options.threads, rows)


def affordable(cases: Sequence[lora.Case]) -> tuple[lora.Case, ...]:
    """Return the cases without bf16 where torch has no fast products in it, which would take hours."""
    if has_fast_bf16():
        return tuple(cases)
    console.warn("bf16 is left out: torch has no fast products in bf16 on this processor")
    return tuple(case for case in cases if case.dtype != "bfloat16")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m benchmarks.speed", __doc__)
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    count = os.cpu_count() or 1
    parser.add_argument("--threads", type=whole_number(1, 256), metavar="N", default=count, help="(%(default)s)")
    return parser.parse_args(arguments)


def _part(text: str) -> str:  # choices would refuse the empty list of parts
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {text}")
    return text


if __name__ == "__main__":
    main()
