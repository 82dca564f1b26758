"""The cost of adapters: a layer, terms, a training step, time to a score, many in a batch; and how costs grow.

Results are in benchmarks/results/speed.json, speed.png and race.png.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import NamedTuple, TypeVar

from benchmarks import figures
from benchmarks.speed import growth, layer, many, many_report, race, report, step, terms
from benchmarks.speed.dtypes import affordable
from pipeline.core import console
from pipeline.core.errors import exit_on_error

PARTS = ("layer", "terms", "step", "race", "many", "growth")
RESULTS = figures.FOLDER / "speed.json"
PICTURE = figures.FOLDER / "speed.png"
RACE_PICTURE = figures.FOLDER / "race.png"
ROUNDS = 4  # of steps
Row = TypeVar("Row", bound=NamedTuple)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 130 after Ctrl-C.
    """
    options = _options(arguments)
    parts = options.parts or PARTS
    with exit_on_error("stopped; parts that are done are kept"):
        if "layer" in parts:
            run_layer(affordable("layer", layer.CASES), options.threads, layer.ROUNDS)
        if "terms" in parts:
            run_terms(options.threads)
        if "step" in parts:
            run_step(affordable("step", step.CASES), options.threads, ROUNDS)
        if "race" in parts:
            run_race(options.threads)
        if "many" in parts:
            run_many(options.threads, many.COUNTS, many.ROUNDS)
        if "growth" in parts:
            run_growth(options.threads, growth.CASES, growth.ROUNDS)
    draw()


def run_layer(cases: Sequence[layer.Case], threads: int, rounds: int) -> None:
    """Measure single layers; print and write the figures."""
    rows = layer.run(tuple(cases), threads, rounds)
    _publish("layer", threads, rows, report.show_layers, report.layer_targets)


def run_terms(threads: int, rounds: int = terms.ROUNDS) -> None:
    """Measure increasing numbers of terms, and both ways to apply them; print and write the figures."""
    _publish("terms", threads, terms.run(threads, rounds), report.show_terms, report.terms_targets)


def run_step(cases: Sequence[step.Case], threads: int, rounds: int) -> None:
    """Measure whole training steps; print and write the figures."""
    _publish("step", threads, step.run(tuple(cases), threads, rounds), report.show_steps, report.step_targets)


def run_race(threads: int) -> None:
    """Measure scores by the time from raw text; print and write the figures."""
    _publish("race", threads, race.run(threads), report.show_race, report.race_targets)


def run_many(threads: int, counts: tuple[int, ...], rounds: int) -> None:
    """Measure many adapters in one batch; print and write the figures."""
    _publish("many", threads, many.run(threads, counts, rounds), many_report.show, many_report.targets)


def run_growth(threads: int, cases: tuple[tuple[str, int], ...], rounds: int) -> None:
    """Measure how costs grow; print and write the figures."""
    _publish("growth", threads, growth.run(threads, cases, rounds), report.show_growth, lambda rows: ())


def _publish(
    part: str,
    threads: int,
    measured: Iterable[Row],  # lazily: each row is measured when it is requested
    show: Callable[[Sequence[Row]], None],
    targets: Callable[[Sequence[Row]], Iterable[report.Target]],
) -> None:
    where = figures.machine(threads)  # includes the load before the measurements
    begin = perf_counter()
    rows = list(measured)
    console.line(f"{part}: measured in {perf_counter() - begin:.0f} s")
    show(rows)
    report.show_targets(targets(rows))
    figures.write(RESULTS, part, where, [row._asdict() for row in rows])


def draw() -> None:
    """Draw the plots of what has been measured."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    if {"layer", "step"} <= set(known):
        layers = [layer.Row(**fields) for fields in known["layer"]["figures"]]
        steps = [step.Row(**fields) for fields in known["step"]["figures"]]
        report.draw(PICTURE, layers, steps)
    if "race" in known:
        report.draw_race(RACE_PICTURE, [race.Row(**fields) for fields in known["race"]["figures"]])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--threads", type=int, choices=range(1, 257), metavar="N", default=os.cpu_count(), help="default: all cores"
    )
    return parser.parse_args(arguments)


def _part(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {text}")
    return text


if __name__ == "__main__":
    main()
