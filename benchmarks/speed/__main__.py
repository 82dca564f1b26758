"""The cost of adapters in time and memory: one layer, a whole training step, LoRA by PEFT and by LSR, many in a batch.

Results are in benchmarks/results/speed.json and speed.png.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from benchmarks import figures
from benchmarks.speed import layer, lora, many, picture, step
from pipeline.core import console
from pipeline.core.command_line import Parser
from pipeline.core.errors import exit_on_error
from pipeline.training.arguments import has_fast_bf16

PARTS = ("layer", "step", "lora", "many")
RESULTS = figures.FOLDER / "speed.json"
PICTURE = figures.FOLDER / "speed.png"
Case = TypeVar("Case", layer.Case, step.Case, lora.Case)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts, and draw all that has been measured.

    Raises:
        SystemExit: with code 2 after a mistake on the command line, 130 after Ctrl-C.
    """
    options = _options(arguments)
    threads = options.threads
    measure: dict[str, Callable[[], Iterator[Any]]] = {
        "layer": lambda: layer.run(affordable(layer.CASES), threads),
        "step": lambda: step.run(affordable(step.CASES), threads),
        "lora": lambda: lora.run(affordable(lora.CASES), threads),
        "many": lambda: many.run(threads),
    }
    with exit_on_error("stopped; parts that are done are kept"):
        for part in options.parts or PARTS:
            figures.publish(RESULTS, part, threads, measure[part]())
    draw()


def affordable(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the cases without bf16 where torch has no fast products in it, which would take hours."""
    if has_fast_bf16():
        return tuple(cases)
    console.warn("bf16 is left out: torch has no fast products in bf16 on this processor")
    return tuple(case for case in cases if case.dtype != "bfloat16")


def draw() -> None:
    """Draw the plot of layers and steps once both have been measured."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    if {"layer", "step"} <= set(known):
        layers = [layer.Row(**fields) for fields in known["layer"]["figures"]]
        steps = [step.Row(**fields) for fields in known["step"]["figures"]]
        picture.draw(PICTURE, layers, steps)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    figures.add_threads(parser, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def _part(text: str) -> str:  # choices would refuse the empty list of parts
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {text}")
    return text


if __name__ == "__main__":
    main()
