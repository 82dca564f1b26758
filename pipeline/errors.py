"""The one exception that means "the user can mend this": shown as plain lines, never as a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in params, data or model that the user can mend.

    The message is one line a mistake: where, what, and what is allowed. `pipeline.stage.run` prints it and leaves with
    exit code 2.
    """


def nearest(word: object, known: Iterable[object]) -> str:
    """Return "; did you mean X?" for the known word that is most like `word`, or nothing."""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
