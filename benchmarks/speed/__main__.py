"""The cost of adapters in time and memory: one layer, a whole training step, many adapters in a batch.

Results are in benchmarks/results/speed.json and speed.png.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch

from benchmarks import figures
from benchmarks.speed import layer, many, report, step
from pipeline.core import console
from pipeline.core.errors import exit_on_error

PARTS = ("layer", "step", "many")
RESULTS = figures.FOLDER / "speed.json"
PICTURE = figures.FOLDER / "speed.png"
Case = TypeVar("Case", layer.Case, step.Case)
Row = TypeVar("Row", bound=NamedTuple)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts, and draw all that has been measured.

    Raises:
        SystemExit: with code 2 after a mistake on the command line, 130 after Ctrl-C.
    """
    options = _options(arguments)
    threads = options.threads
    with exit_on_error("stopped; parts that are done are kept"):
        if "layer" in options.parts:
            publish("layer", threads, layer.run(affordable(layer.CASES), threads), report.show_layers)
        if "step" in options.parts:
            publish("step", threads, step.run(affordable(step.CASES), threads), report.show_steps)
        if "many" in options.parts:
            publish("many", threads, many.run(threads), report.show_many)
    draw()


def affordable(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the cases without bf16 where torch has no fast products in it, which would take hours."""
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return tuple(cases)
    console.warn("bf16 is left out: torch has no fast products in bf16 on this processor")
    return tuple(case for case in cases if case.dtype != "bfloat16")


def publish(
    part: str,
    threads: int,
    measured: Iterable[Row],  # lazily: each row is measured when it is requested
    show: Callable[[Sequence[Row]], None],
) -> None:
    """Measure one part; print and write its figures."""
    where = figures.machine(threads)  # includes the load before the measurements
    begin = perf_counter()
    rows = list(measured)
    console.line(f"{part}: measured in {perf_counter() - begin:.0f} s")
    show(rows)
    figures.write(RESULTS, part, where, [row._asdict() for row in rows])


def draw() -> None:
    """Draw the plot of layers and steps once both have been measured."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    if {"layer", "step"} <= set(known):
        layers = [layer.Row(**fields) for fields in known["layer"]["figures"]]
        steps = [step.Row(**fields) for fields in known["step"]["figures"]]
        report.draw(PICTURE, layers, steps)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--threads", type=int, choices=range(1, 257), metavar="N", default=os.cpu_count(), help="default: all cores"
    )
    options = parser.parse_args(arguments)
    options.parts = options.parts or PARTS
    return options


def _part(text: str) -> str:  # choices would refuse the empty list of parts
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {text}")
    return text


if __name__ == "__main__":
    main()
