"""`python -m tests.torture`, or make torture: many trials of what a short test tries a few times.

Prints one table: how many trials there were, how many went well and how many did not. Exit status 0 only if all did. At
Ctrl-C it prints the table of what has run, and goes on from there when it is started again with the same code and seed.
"""

import argparse
import hashlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import tests.conftest  # noqa: F401 settings of all tests, before anything imports transformers
from pipeline.core import console
from tests import workspace
from tests.torture import adapters, data, disks, experiments, kills, mistakes, ranks
from tests.torture.trials import Case, Journal, outcome
from tests.torture.workers import results

# Those of many short trials first, so that much has run when it is stopped; the last two take minutes a trial.
CASES = (*mistakes.CASES, *kills.CASES, *adapters.CASES, *data.CASES, *disks.CASES, *ranks.CASES, *experiments.CASES)
COLUMNS = ("case", "tried", "clean", "failed", "seconds")
JOURNAL = workspace.ROOT / "build/torture.jsonl"
STOPPED = 130


def main(words: Sequence[str] | None = None, cases: Sequence[Case] = CASES, path: Path = JOURNAL) -> int:
    """Run the cases; return the exit status."""
    options = parser(cases).parse_args(words)
    chosen = [one._replace(count=max(1, round(one.count * options.scale))) for one in cases if options.only in one.name]
    if not chosen:
        parser(cases).error(f"--only {options.only}: names no case; cases: {', '.join(case.name for case in cases)}")
    journal = Journal(path, f"{_code()} {options.seed} {options.scale}")
    planned = sum(case.count for case in chosen)
    left = planned - sum(len(journal.done(case)) for case in chosen)
    stopped = False
    try:
        with console.progress("torture", left, "trials") as advance:
            for result in results([(case, journal.done(case)) for case in chosen], options.seed, options.jobs):
                journal.add(result)
                advance(int(result.number is not None))
    except KeyboardInterrupt:
        stopped = True
    outcomes = [outcome(case, journal.results, stopped=stopped) for case in chosen]
    for reason in (reason for one in outcomes for reason in one.reasons):
        print(reason, file=sys.stderr)
    rows = [
        (case.name, one.tried, one.clean, one.failed, f"{one.seconds:.0f}")
        for case, one in zip(chosen, outcomes, strict=True)
    ]
    sums = [sum(int(row[column]) for row in rows) for column in range(1, len(COLUMNS))]
    title = f"torture, seed {options.seed}" + (f", stopped after {sums[0]} of {planned} trials" if stopped else "")
    console.table(title, COLUMNS, [*rows, ("all", *sums[:-1], str(sums[-1]))])
    if stopped:
        print(f"the same command goes on from there; without {path} it begins anew", file=sys.stderr)
        return STOPPED
    path.unlink()
    return int(any(one.failed for one in outcomes))


def _code() -> str:
    """Return a digest of all code that a trial may run: what an older version has passed says nothing of this one."""
    found = hashlib.sha256()
    for top in ("lsr", "pipeline", "stages", "tests", "examples"):
        for file in sorted((workspace.ROOT / top).rglob("*.*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(f"{file.relative_to(workspace.ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def parser(cases: Sequence[Case]) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = ", ".join(f"{case.name} ({case.count})" for case in cases)
    top = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__, epilog=f"Cases: {names}.")
    top.add_argument("--only", default="", metavar="WORD", help="cases whose names hold it")
    top.add_argument("--scale", type=float, default=1.0, metavar="X", help="times as many trials of each case (1)")
    top.add_argument("--seed", type=int, default=0, help="of what is random (0)")
    top.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at once (2)")
    return top


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing that it has started runs on
    raise SystemExit(main())
