"""The console: arguments, progress, and one closing table per stage; plain lines without a terminal."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from lsr_onnx.errors import escape, format_rejection
from pipeline.core import artifacts, git
from pipeline.core.batches import Item
from pipeline.core.errors import MISTAKE, STOPPED, exit_on_error

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # [x] and :x: are shown as they are
IS_FIRST = os.environ.get("RANK", "0") == "0"  # whether this process prints and writes, if several train
console = Console(**PLAIN, quiet=not IS_FIRST)
errors = Console(**PLAIN, stderr=True)  # console for commands whose standard output is data
SECONDS_BETWEEN_LINES = 5.0
AGAIN = "run it again: a training goes on from its last complete epoch"
UNDO = """undo the change and run `dvc repro` to restore what DVC has removed
-S leaves params.yaml edited; to undo all edits of it: git checkout HEAD params.yaml"""
BARS = "▁▂▃▄▅▆▇█"  # heights of a curve drawn in one line
LONGEST = 60  # bars
Advance = Callable[..., None]  # counts units just done; a note stands behind the time until there is another


class Parser(argparse.ArgumentParser):
    """An argument parser whose description is for users, and which reports errors in one line."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog, None, description, epilog)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        line = format_rejection(f"{self.prog}: {message}; see {self.prog} --help")
        self.exit(MISTAKE, f"{line}\n")

    @contextmanager
    def parse(
        self, arguments: Sequence[str] | None = None, stopped: str = "stopped", before: str = ""
    ) -> Iterator[argparse.Namespace]:
        """Parse and yield the options; `exit_on_error` handles errors inside, with advice if DVC runs the command.

        Raises:
            SystemExit: with an exit code.
        """
        options = self.parse_args(arguments)
        try:
            with exit_on_error(stopped, self.prog, before):
                yield options
        except SystemExit as end:
            if "DVC_STAGE" in os.environ and "RANK" not in os.environ and not artifacts.is_temporary_copy():
                print(AGAIN if end.code == STOPPED else UNDO, file=sys.stderr)
            raise


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return an argument type: a whole number within these bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, got {text}")
        return int(text)

    return parse


def probability(text: str) -> float:
    """Return an argument that is a number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: if it is not.
    """
    with suppress(ValueError):
        number = float(text)
        if 0 <= number <= 1:
            return number
    raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")


@contextmanager
def progress(
    description: str,
    total: int | None,
    unit: str,
    to: Console = console,
) -> Iterator[Advance]:
    """Show a progress bar, with the remaining time if the total is known; yield a function to advance it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None, table_column=Column(max_width=40)),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    last = time.monotonic()
    with Progress(*columns, console=to, disable=not to.is_terminal, speed_estimate_period=3600) as bar:
        bar.add_task(description, total=total, note="")
        (task,) = bar.tasks

        def advance(done: int, note: str = "") -> None:
            nonlocal last
            bar.update(task.id, advance=done, note=note or task.fields["note"])
            now = time.monotonic()
            # There is no terminal. A training run reports its beginning with 0 steps done.
            if not to.is_terminal and task.completed and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                of_total = "" if total is None else f"/{total}"
                left = "" if task.time_remaining is None else f"{timedelta(seconds=task.time_remaining)} left"
                parts = [f"{description}: {task.completed}{of_total} {unit}", left, task.fields["note"]]
                to.print(", ".join(filter(None, parts)), soft_wrap=True)

        yield advance


def track(items: Collection[Item], description: str, unit: str = "batches") -> Iterator[Item]:
    """Yield the items, with one step of progress each."""
    with progress(description, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers are right-aligned, and None is empty."""
    if not console.is_terminal:
        line(f"{title}: {' | '.join(columns)}")
        for row in rows:
            line(f"  {' | '.join(map(_format_cell, row))}")
        return
    line(title)  # a title of the table's own would be wrapped to its width
    grid = Table()
    for column in columns:
        grid.add_column(_clean(column), justify="right" if grid.columns else "left")
    for row in rows:
        grid.add_row(*map(_format_cell, row))
    console.print(grid)


def sparkline(values: Sequence[float]) -> str:
    """Draw a curve in one line: a bar per value, or per sampled value, between minimum and maximum."""
    low = min(values)
    spread = (max(values) - low) or 1
    step = 1 + (len(values) - 1) // LONGEST
    highest = len(BARS) - 1
    curve = ""
    for value in values[::step]:
        height = highest * (value - low) / spread
        curve += BARS[round(height)]
    return curve


def line(text: str) -> None:
    """Print one line without wrapping."""
    console.print(_clean(text), soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning as one line."""
    console.print(_clean(text), style="yellow", soft_wrap=True)


def note(text: str) -> None:
    """Print one line on standard error, when standard output is data."""
    errors.print(_clean(text), soft_wrap=True)


def warn_without_identity() -> None:
    """Explain how to set Git's user name: without it, `dvc exp run` fails before any stage starts."""
    known = (git.output("config", "--get-regexp", "^user") or b"").decode(errors="replace")
    for what in ("name", "email"):
        if f"user.{what} " not in known and f"GIT_COMMITTER_{what.upper()}" not in os.environ:
            warn(
                "Git has no user.name or user.email, which `dvc exp run` needs: "
                "git config user.name 'Your Name' && git config user.email you@example.com"
            )
            return


def _format_cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return "" if cell is None else escape(str(cell))


def _clean(text: str) -> str:
    return escape(text, but="\n\t")
