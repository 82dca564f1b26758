"""What an adapter costs: one layer, more terms, a training step, the way from text to a score; beside other methods.

Results are in benchmarks/results/speed.json and speed.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from benchmarks import results
from benchmarks.speed import layer, race, report, step, terms
from pipeline.errors import UserError

PARTS = ("layer", "terms", "step", "race")
RESULTS = results.FOLDER / "speed.json"
PICTURE = results.FOLDER / "speed.png"
ROUNDS = 9  # of steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 130 after Ctrl-C.
    """
    options = _options(arguments)
    parts = options.parts or PARTS
    try:
        if "layer" in parts:
            run_layer(layer.CASES, options.threads, layer.ROUNDS)
        if "terms" in parts:
            run_terms(options.threads)
        if "step" in parts:
            run_step(step.CASES, options.threads, ROUNDS)
        if "race" in parts:
            run_race(options.threads)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; parts that are done are kept", file=sys.stderr)
        raise SystemExit(130) from None
    draw()


def run_layer(cases: Sequence[layer.Case], threads: int, rounds: dict[int, int]) -> None:
    """Measure single layers; print and write the figures."""
    where = results.machine(threads)
    rows = list(layer.run(tuple(cases), threads, rounds))
    report.show_layers(rows)
    report.show_targets(report.layer_targets(rows))
    results.write(RESULTS, "layer", where, [row._asdict() for row in rows])


def run_terms(threads: int, rounds: int = terms.ROUNDS) -> None:
    """Measure more and more terms, and both ways to apply them; print and write the figures."""
    where = results.machine(threads)
    rows = list(terms.run(threads, rounds))
    growths = [row for row in rows if isinstance(row, terms.Growth)]
    sides = [row for row in rows if isinstance(row, terms.Side)]
    report.show_terms(growths, sides)
    report.show_targets(report.terms_targets(growths))
    results.write(RESULTS, "terms", where, [row._asdict() for row in rows])


def run_step(cases: Sequence[step.Case], threads: int, rounds: int) -> None:
    """Measure whole training steps; print and write the figures."""
    where = results.machine(threads)
    rows = list(step.run(tuple(cases), threads, rounds))
    report.show_steps(rows)
    report.show_targets(report.step_targets(rows))
    results.write(RESULTS, "step", where, [row._asdict() for row in rows])


def run_race(threads: int, epochs: int = race.EPOCHS) -> None:
    """Measure the way from text to a score; print and write the figures."""
    where = results.machine(threads)
    rows = list(race.run(threads, epochs))
    report.show_race(rows)
    report.show_targets(report.race_targets(rows))
    results.write(RESULTS, "race", where, [row._asdict() for row in rows])


def draw() -> None:
    """Draw the picture, if layers and steps are measured."""
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
    return parser.parse_args(arguments)


def _part(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {text}")
    return text


if __name__ == "__main__":
    main()
