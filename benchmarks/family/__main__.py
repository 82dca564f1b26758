"""Which form of LSR wins with how many parameters? Run every missing cell, then write benchmarks/results/family/.

The comparison is defined in benchmarks/family/methods.py and experiment.py. Finished cells are kept, so a stopped run
resumes where it was.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import chain

from benchmarks import figures
from benchmarks.family import plan, rates, report, store, summary
from benchmarks.family.experiment import PROTOCOLS
from benchmarks.family.measure import Line, measure
from pipeline.arena.workers import set_up_torch, workers_of_this_program
from pipeline.core import console
from pipeline.core.errors import UserError, exit_on_error, nearest

RESULTS = figures.FOLDER / "family"
CELLS = RESULTS / "cells.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 130 after Ctrl-C.
    """
    options = _options(arguments)
    with exit_on_error("stopped; finished cells are kept"):
        found = store.load(CELLS)
        if not options.table:
            protocols = [options.protocol] if options.protocol else list(PROTOCOLS)
            run(protocols, options.only or [""], options.workers, found)
        if table := summary.rows(found):
            report.write(table, RESULTS)
            rates.write(found, RESULTS)
        else:
            console.console.print("no learning rate is tuned yet, so there is nothing to compare")


def run(protocols: Sequence[str], only: Sequence[str], workers: int, found: dict[str, Line]) -> None:
    """Measure the missing cells of the runs chosen by `only`, and add their lines to `found` and to the file.

    Raises:
        UserError: if no run is chosen, or a cell cannot run; finished cells are kept.
    """
    if not any(plan.runs(protocol, only) for protocol in protocols):
        words = " ".join(only)
        near = nearest(words, [one.name for protocol in protocols for one in plan.runs(protocol)])
        raise UserError(f"--only {words}: no run has this in its name{near}; a name is PROTOCOL DATA: METHOD")
    set_up_torch(threads=1)  # two processes with one thread each are faster than one with two
    pool = workers_of_this_program(workers)
    most = sum(plan.count_missing(protocol, only, found) for protocol in protocols)
    with pool, console.progress("family: at most", most, "cells") as advance:
        try:
            for cells in chain.from_iterable(plan.batches(protocol, only, found) for protocol in protocols):
                for future in as_completed([pool.submit(measure, cell) for cell in cells]):
                    line = future.result()
                    store.append(CELLS, line)
                    found[line["key"]] = line
                    advance(1)
        except BrokenProcessPool:
            raise UserError("a worker was killed, perhaps for lack of memory: resume with --workers 1") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workers",
        type=int,
        choices=range(1, 17),
        default=2,
        metavar="N",
        help="processes, with one thread each (default: 2)",
    )
    parser.add_argument("--protocol", choices=list(PROTOCOLS), help="how to train (default: each, one after the other)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="run the cells named TEXT, such as 'short tweets: core r=4', or with TEXT in their name; may be repeated",
    )
    parser.add_argument("--table", action="store_true", help="only write the table of the finished cells")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
