"""`python -m pipeline.arena`, or make arena: train all methods of a preset on its tasks.

Learning rates are tuned, and training is repeated with several seeds. Presets are in pipeline/arena.yaml. Finished
trainings are kept in reports/arena/PRESET/, and a stopped run resumes from them; records from other machines are read,
too, if their files are copied there.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipeline.arena import check, plan, preset, record, tuning
from pipeline.arena.measure import measure, task_of
from pipeline.arena.plan import Cell, Run
from pipeline.arena.record import Record
from pipeline.arena.task_tokens import write_labels
from pipeline.arena.workers import set_up_torch, workers_of_this_program
from pipeline.core import console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, exit_on_error, nearest

PROGRAM = "python -m pipeline.arena"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 after a user's mistake, 130 after Ctrl-C.
    """
    options = parser().parse_args(words)
    with exit_on_error("stopped; finished trainings are kept", PROGRAM):
        runs = runs_of(options.preset, options.only)
        folder = record.FOLDER / options.preset
        records = record.read(folder)
        compete(runs, records, folder / f"{options.write}{record.ENDING}", options.jobs)
        console.line(f"compare: python -m pipeline.compare {options.preset}")


def runs_of(name: str, only: Sequence[str]) -> list[Run]:
    """Return the selected runs of a preset.

    Raises:
        UserError: if there is no such preset or run.
    """
    chosen = preset.load(name)
    if runs := plan.runs(name, chosen, only):
        return runs
    words = " ".join(only)
    near = nearest(words, [run.title for run in plan.runs(name, chosen)])
    raise UserError(f"--only {words}: no run has this in its title{near}; a title is TASK: METHOD")


def compete(runs: Sequence[Run], records: dict[str, Record], path: Path, jobs: int) -> None:
    """Run the missing trainings, and add their records to `records` and to the file.

    Raises:
        UserError: if one of them cannot run, before any does; or if a worker dies.
    """
    left = [run for run in runs if tuning.missing(run, records)]
    if not left:
        return
    check.check(left)
    for run in {run.task: run for run in left}.values():
        task = task_of(run.first())
        write_labels(task, record.labels_path(run.name, run.task, private=task.row.source.kind == "files"))
    set_up_torch(threads=max(1, (os.cpu_count() or 1) // jobs))
    most = sum(tuning.most_left(run, records) for run in left)
    with workers_of_this_program(jobs) as pool, console.progress("arena: at most", most, "trainings") as advance:
        busy: dict[Future[Record], Cell] = {}
        try:
            while True:
                for cell in _next(left, records, {cell.key for cell in busy.values()}, jobs - len(busy)):
                    busy[pool.submit(measure, cell)] = cell
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    done = future.result()
                    record.append(path, done)
                    records[busy.pop(future).key] = done
                    advance(1)
        except BrokenProcessPool:
            raise UserError("a worker was killed, perhaps for lack of memory: resume with --jobs 1") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _next(runs: Sequence[Run], records: tuning.Records, busy: set[str], count: int) -> Iterator[Cell]:
    """Yield at most `count` trainings that can start now, in the order of the runs, so that these complete in turn."""
    for run in runs:
        for cell in tuning.missing(run, records):
            if count > 0 and cell.key not in busy:
                count -= 1
                busy.add(cell.key)
                yield cell


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(PROGRAM, __doc__)
    top.add_argument("preset", nargs="?", default="offline", help="preset in pipeline/arena.yaml (%(default)s)")
    top.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only runs whose title, such as 'tweets: LoRA r=1', contains TEXT; if repeated, all of them",
    )
    top.add_argument(
        "--jobs", type=whole_number(1, 64), default=2, metavar="N", help="trainings in parallel (%(default)s)"
    )
    top.add_argument(
        "--write", default="records", metavar="NAME", help="name of the file for new records (%(default)s)"
    )
    return top


if __name__ == "__main__":
    main()
