"""The one exception that means "the user can mend this": shown as plain lines, never as a traceback."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in params, data or model that the user can mend.

    The message is one line a mistake: where, what, and what is allowed. `leaving_in_plain_lines` prints it.
    """


@contextmanager
def leaving_in_plain_lines(stopped: str) -> Iterator[None]:
    """Print a user's mistake, or at Ctrl-C what `stopped` says, and leave.

    Raises:
        SystemExit: with code 2 after a mistake, 130 after Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise SystemExit(130) from None


def nearest(word: object, known: Iterable[object]) -> str:
    """Return "; did you mean X?" for the known word that is most like `word`, or nothing."""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
