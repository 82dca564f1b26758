"""The cost of initializations compared with torch's decompositions: time and memory, for weights and model shards.

`starts` measures single weights, `stream` the layers of a model with 7 B parameters, read from a temporary folder.
Results are in benchmarks/results/factorize.json.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.factorize import measure, stream, summary
from benchmarks.factorize.cases import Case, cases
from benchmarks.processes import in_fresh_process, process
from pipeline.core import console
from pipeline.core.errors import exit_on_error

RESULTS = figures.FOLDER / "factorize.json"
ROUNDS = {384: 7, 768: 7, 1024: 5, 4096: 3}  # by size; in each round, all calls on a size take turns
LAYERS = (8, 32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 if something is wrong with the command line or the disk, 130 after Ctrl-C.
    """
    options = _options(arguments)
    with exit_on_error("stopped; parts that are done are kept"):
        if options.part in ("all", "starts"):
            run_starts(ROUNDS, options.threads)
        if options.part in ("all", "stream"):
            run_stream(options.layers, options.threads)


def run_starts(rounds: Mapping[int, int], threads: int) -> None:
    """Measure all calls on weights of these sizes, in the given numbers of rounds; print and write the figures."""
    where = figures.machine(threads)
    turns = [case for size, count in rounds.items() for _ in range(count) for case in cases(size)]
    times: dict[Case, list[float]] = {case: [] for case in turns}
    with process(threads, measure.__name__) as worker:
        for case in console.track(turns, "time", len(turns), "calls"):
            times[case].append(worker.submit(measure.seconds, case).result())
    rows = []
    for case in console.track(times, "memory", len(times), "calls"):
        rows.append(summary.row(case, times, in_fresh_process(threads, measure.probe, case)))
    summary.show_starts(rows)
    figures.write(RESULTS, "starts", where, [row._asdict() for row in rows])


def run_stream(layers: Sequence[int], threads: int, size: int = stream.SIZE) -> None:
    """Initialize layers of a sharded model, for each number of layers in its own process; print and write the figures.

    Raises:
        UserError: if there is not enough disk space for the shards.
    """
    where = figures.machine(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream.check_space(folder, max(layers), size)
        in_fresh_process(threads, stream.write_shards, folder, max(layers), size)
        passes = [
            in_fresh_process(threads, stream.start_layers, folder, count, start)
            for start in stream.STARTS
            for count in layers
        ]
    summary.show_stream(passes)
    figures.write(RESULTS, "stream", where, [found._asdict() for found in passes])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.factorize", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=("all", "starts", "stream"), default="all")
    parser.add_argument("--threads", type=_positive, default=2, help="threads of each process (default: 2)")
    parser.add_argument(
        "--layers", type=_positive, nargs="+", default=LAYERS, help="layers of the model (default: 8, then 32)"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
