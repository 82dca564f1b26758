"""End failing commands in one line, without a traceback.

A UserError is a mistake that the user can fix. Errors of the machine, such as a full disk, get one line, too.
"""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsr_onnx.errors import InputError, first_line, format_rejection

# Exit codes.
MISTAKE = 2
FAILED = 1
STOPPED = 130
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # error number in messages of Rust packages: safetensors and tokenizers
TORCH_SAVE = ("inline_container.cc", "iostream error")  # parts of torch's messages about files
MAX_LINES = 20


class UserError(Exception):
    """A mistake in params, data or model that the user can fix.

    The message is one line per mistake: where, what, and what is allowed. It may quote a file, so the number and length
    of lines are limited.
    """

    def __str__(self) -> str:
        lines = [line for line in super().__str__().split("\n") if line]
        more = [f"and {len(lines) - MAX_LINES} more mistakes"] if len(lines) > MAX_LINES else []
        return "\n".join([*map(format_rejection, lines[:MAX_LINES]), *more])


@contextmanager
def as_user_error(*error_types: type[Exception], before: str = "") -> Iterator[None]:
    """Convert errors of these types into a UserError: `before`, and the first line of their message.

    Raises:
        UserError: in place of them.
    """
    try:
        yield
    except error_types as error:
        raise UserError(f"{before}{first_line(error)}") from None


@contextmanager
def exit_on_error(stopped: str, program: str = "failed", before: str = "") -> Iterator[None]:
    """Print a user's mistake after `before`, a machine's error after `program`, or `stopped` at Ctrl-C; then exit.

    A mistake is a UserError, or an InputError of lsr. Python's warnings are printed at the end, but not after a
    mistake, whose line is the only one.

    Raises:
        SystemExit: with code 2 after a mistake, 1 if a file cannot be read or written, memory is short or an answer is
            not finite, 130 after Ctrl-C.
    """
    with _warnings_at_the_end():
        try:
            yield
            return
        except KeyboardInterrupt:
            code = STOPPED
            lines = stopped
        except Exception as error:
            if isinstance(error, UserError | InputError):
                code = MISTAKE
                lines = f"{before}{error}"
            else:
                reason = describe_machine_error(error)
                if not reason:
                    raise
                code = FAILED
                lines = format_rejection(f"{program}: {reason}")
        if _is_first_to_fail():
            print(lines, file=sys.stderr)
        raise SystemExit(code)


@contextmanager
def _warnings_at_the_end() -> Iterator[None]:
    """Keep the warnings of packages until a command ends; drop them if it exits with an error.

    Raises:
        SystemExit: as the command does.
    """
    kept = list[tuple[Any, ...]]()
    show = warnings.showwarning
    warnings.showwarning = lambda *warning: kept.append(warning)
    try:
        yield
    except SystemExit as end:
        if end.code not in (None, 0):
            kept.clear()
        raise
    finally:
        warnings.showwarning = show
        for warning in kept:
            show(*warning)


def _is_first_to_fail() -> bool:
    """Return whether this is the first of torchrun's processes to report an error."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # torchrun gives each process a folder, all of them in one folder
    if not file:
        return True
    try:
        Path(file).parents[1].joinpath("said").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def describe_machine_error(error: Exception) -> str | None:
    """Describe an I/O or out-of-memory error in one line; None if it is a bug."""
    if isinstance(error, FloatingPointError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory"
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    reason = describe_disk_error(error)
    return None if reason is None else f"{where}{reason}"


def describe_disk_error(error: Exception) -> str | None:
    """Describe why a file cannot be read or written, without its name; None for any other error.

    It recognizes errors of packages in C++ or Rust, which are not OSErrors.
    """
    text = first_line(error)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else text
    match = OS_ERROR.search(text)
    if match:
        return os.strerror(int(match[1]))
    return "the file cannot be written completely" if any(words in text for words in TORCH_SAVE) else None


def nearest(name: object, known: Iterable[object]) -> str:
    """Return "; did you mean X?" for the known name most similar to `name`, or an empty text."""
    near = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""
