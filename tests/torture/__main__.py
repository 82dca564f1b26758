"""`python -m tests.torture`, or make torture: many trials of what a short test tries a few times.

Prints one table: how many trials there were, how many went well and how many did not. Exit status 0 only if all did.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import tests.conftest  # noqa: F401 settings of all tests, before anything imports transformers
from pipeline import console
from tests.torture import adapters, data, disks, experiments, kills, mistakes, ranks
from tests.torture.trials import Case, Outcome, run

CASES = (*kills.CASES, *mistakes.CASES, *adapters.CASES, *data.CASES, *disks.CASES, *ranks.CASES, *experiments.CASES)
COLUMNS = ("case", "tried", "clean", "failed", "seconds")


def main(words: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Run the cases; return the exit status."""
    options = parser(cases).parse_args(words)
    chosen = [case for case in cases if options.only in case.name]
    if not chosen:
        parser(cases).error(f"--only {options.only}: names no case; cases: {', '.join(case.name for case in cases)}")
    rows, outcomes = [], []
    for case in chosen:
        begin = time.monotonic()
        outcome = torture(case._replace(count=max(1, round(case.count * options.scale))), options.seed)
        rows.append((case.name, outcome.tried, outcome.clean, outcome.failed, f"{time.monotonic() - begin:.0f}"))
        outcomes.append(outcome)
    for reason in (reason for outcome in outcomes for reason in outcome.reasons):
        print(reason, file=sys.stderr)
    sums = [sum(int(row[column]) for row in rows) for column in range(1, len(COLUMNS))]
    console.table(f"torture, seed {options.seed}", COLUMNS, [*rows, ("all", *sums[:-1], str(sums[-1]))])
    return int(any(outcome.failed for outcome in outcomes))


def torture(case: Case, seed: int) -> Outcome:
    """Run a case in a folder of its own, which is gone afterwards."""
    progress = console.progress(case.name, case.count, "trials")
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, progress as advance:
        return run(case, Path(folder).resolve(), Random(f"{seed} {case.name}"), advance)


def parser(cases: Sequence[Case]) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = ", ".join(f"{case.name} ({case.count})" for case in cases)
    top = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__, epilog=f"Cases: {names}.")
    top.add_argument("--only", default="", metavar="WORD", help="cases whose names hold it")
    top.add_argument("--scale", type=float, default=1.0, metavar="X", help="times as many trials of each case (1)")
    top.add_argument("--seed", type=int, default=0, help="of what is random (0)")
    return top


if __name__ == "__main__":
    raise SystemExit(main())
