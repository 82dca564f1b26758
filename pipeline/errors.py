"""The one exception that means "the user can mend this": shown as plain lines, never as a traceback."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

LONGEST_LINE, MOST_LINES = 300, 20
LONGEST_WORD = 100  # that something similar is looked for: it takes quadratic time


class UserError(Exception):
    """A mistake in params, data or model that the user can mend.

    The message is one line a mistake: where, what, and what is allowed. `leaving_in_plain_lines` prints it. A file may
    hold anything, so lines and their number are bounded, whatever they show of it.
    """

    def __str__(self) -> str:
        lines = super().__str__().splitlines()
        more = [f"and {len(lines) - MOST_LINES} mistakes more"] if len(lines) > MOST_LINES else []
        return "\n".join([*map(clipped, lines[:MOST_LINES]), *more])


def clipped(line: str) -> str:
    """Return a line of at most LONGEST_LINE characters: where it begins, and how it ends, say most."""
    half = (LONGEST_LINE - 3) // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}...{line[-half:]}"


@contextmanager
def leaving_in_plain_lines(stopped: str, may_speak: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Print a user's mistake, or at Ctrl-C what `stopped` says, and leave; of several processes one may speak.

    Raises:
        SystemExit: with code 2 after a mistake, 130 after Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        if may_speak():
            print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if may_speak():
            print(stopped, file=sys.stderr)
        raise SystemExit(130) from None


def nearest(word: object, known: Iterable[object]) -> str:
    """Return "; did you mean X?" for the known word that is most like `word`, or nothing."""
    if isinstance(word, str) and len(word) > LONGEST_WORD:
        return ""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
