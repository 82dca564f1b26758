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
from pipeline.arena.plan import Entry, Training
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
        entries = entries_of(options.preset, options.only)
        folder = record.FOLDER / options.preset
        records = record.read(folder)
        compete(entries, records, folder / f"{options.write}{record.ENDING}", options.jobs)
        console.line(f"compare: python -m pipeline.compare {options.preset}")


def entries_of(name: str, only: Sequence[str]) -> list[Entry]:
    """Return the selected entries of a preset.

    Raises:
        UserError: if there is no such preset or entry.
    """
    chosen = preset.load(name)
    if entries := plan.entries(name, chosen, only):
        return entries
    words = " ".join(only)
    near = nearest(words, [entry.title for entry in plan.entries(name, chosen)])
    raise UserError(f"--only {words}: no entry has this in its title{near}; a title is TASK: METHOD")


def compete(entries: Sequence[Entry], records: dict[str, Record], path: Path, jobs: int) -> None:
    """Run the missing trainings, and add their records to `records` and to the file.

    Raises:
        UserError: if one of them cannot run, before any does; or if a worker dies.
    """
    left = [entry for entry in entries if tuning.missing(entry, records)]
    if not left:
        return
    check.check(left)
    for entry in {entry.task: entry for entry in left}.values():
        task = task_of(entry.first())
        write_labels(task, record.labels_path(entry.name, entry.task, private=task.row.source.kind == "files"))
    set_up_torch(threads=max(1, (os.cpu_count() or 1) // jobs))
    most = sum(tuning.most_left(entry, records) for entry in left)
    with workers_of_this_program(jobs) as pool, console.progress("arena: at most", most, "trainings") as advance:
        busy: dict[Future[Record], Training] = {}
        try:
            while True:
                for training in _next(left, records, {training.key for training in busy.values()}, jobs - len(busy)):
                    busy[pool.submit(measure, training)] = training
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


def _next(entries: Sequence[Entry], records: tuning.Records, busy: set[str], count: int) -> Iterator[Training]:
    """Yield at most `count` trainings that can start now, entry by entry, so that entries are completed in turn."""
    for entry in entries:
        for training in tuning.missing(entry, records):
            if count > 0 and training.key not in busy:
                count -= 1
                busy.add(training.key)
                yield training


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(PROGRAM, __doc__)
    top.add_argument("preset", nargs="?", default="offline", help="preset in pipeline/arena.yaml (%(default)s)")
    top.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only entries whose title, such as 'tweets: LoRA r=1', contains TEXT; if repeated, all of them",
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
