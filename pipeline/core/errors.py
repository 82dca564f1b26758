"""How every command ends that does not end well: in plain lines, never in a traceback.

A UserError is a mistake that the user can mend. What the machine refuses, a full disk for one, is none of the program.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

MISTAKE, FAILED, STOPPED = 2, 1, 130  # exit codes
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how packages in Rust say it: safetensors and tokenizers
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TORCH_SAVE = ("inline_container.cc", "iostream error")  # how it says so: in the middle, and at the end
LONGEST_LINE, MOST_LINES = 300, 20
LONGEST_WORD = 100  # that something similar is looked for: it takes quadratic time


class UserError(Exception):
    """A mistake in params, data or model that the user can mend.

    The message is one line a mistake: where, what, and what is allowed. `leaving_in_plain_lines` prints it. A file may
    hold anything, so lines and their number are bounded, whatever they show of it.
    """

    def __str__(self) -> str:
        lines = [line for line in super().__str__().split("\n") if line]
        more = [f"and {len(lines) - MOST_LINES} mistakes more"] if len(lines) > MOST_LINES else []
        return "\n".join([*map(clipped, lines[:MOST_LINES]), *more])


def clipped(line: str) -> str:
    """Return a line of at most LONGEST_LINE characters: where it begins, and how it ends, say most.

    What a terminal would take for a command or the end of a line is escaped.
    """
    line = CONTROL.sub(lambda found: ascii(found[0])[1:-1], line)
    half = (LONGEST_LINE - 3) // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}...{line[-half:]}"


@contextmanager
def leaving_in_plain_lines(
    stopped: str, program: str = "failed", before: str = "", may_speak: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Print a user's mistake, what the machine refuses, or at Ctrl-C what `stopped` says, and leave.

    A mistake says where it is, perhaps after the words `before` it; what the machine refuses may have no place at all,
    so the program is named. Of several processes one may speak.

    Raises:
        SystemExit: with code 2 after a mistake, 1 where a file or stream cannot be read or written or memory ends,
            130 after Ctrl-C.
    """
    open_streams()
    try:
        yield
        flush_output()
    except UserError as error:
        _leave(MISTAKE, f"{before}{error}", may_speak)
    except KeyboardInterrupt:
        _leave(STOPPED, stopped, may_speak)
    except Exception as error:
        reason = refused_by_machine(error)
        if reason is None:
            raise
        _leave(FAILED, clipped(f"{program}: {reason}"), may_speak)


def _leave(code: int, lines: str, may_speak: Callable[[], bool]) -> None:
    with suppress(OSError):  # nobody can be told where standard error is full too
        if may_speak():
            print(lines, file=sys.stderr, flush=True)
    try:
        flush_output()
    except OSError:
        drop_output()
    raise SystemExit(code) from None


def open_streams() -> None:
    """Let every text be printed and standard input be read: a closed stream is an empty one, ASCII gets escapes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 it stays open
        elif isinstance(stream, TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Print what is still to be printed.

    Raises:
        OSError: if it cannot be; names the stream.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def drop_output() -> None:
    """Have Python's own flush at the end find a stream that takes what is left."""
    with suppress(OSError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refused_by_machine(error: BaseException) -> str | None:
    """Return in one line what a file, a stream or memory has refused; None for what the program has done wrong."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory"
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    reason = refused_by_disk(error)
    return None if reason is None else f"{where}{reason}"


def refused_by_disk(error: BaseException) -> str | None:
    """Return what a file or stream has refused, without its name; None for any other error.

    Packages that write files by themselves do not raise an OSError of it.
    """
    text = first_line(error)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else text  # Arrow says more, and less clearly
    if found := OS_ERROR.search(text):
        return os.strerror(int(found[1]))
    return "a file cannot be written to its end" if any(words in text for words in TORCH_SAVE) else None


def nearest(word: object, known: Iterable[object]) -> str:
    """Return "; did you mean X?" for the known word that is most like `word`, or nothing."""
    if isinstance(word, str) and len(word) > LONGEST_WORD:
        return ""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
