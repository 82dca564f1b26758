"""Whether a method has a behavior, and if not, the reason."""

import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.capabilities.probes import BEHAVIORS
from benchmarks.capabilities.subjects import Subject

HAS = "yes"
LONGEST_REASON = 120


def column(method: str) -> dict[str, str]:
    """Return for each behavior `HAS`, or the first sentence of the reason why a method lacks it."""
    return {
        name: answer(behavior.probe, Subject(behavior.shown_on, method=method)) for name, behavior in BEHAVIORS.items()
    }


def answer(probe: Callable[[Subject, Path], None], subject: Subject) -> str:
    """Return `HAS` if a probe passes, otherwise the first sentence of its exception."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),  # progress bars
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            probe(subject, Path(folder))
        except Exception as error:  # of any type: users would get it, too
            return _first_sentence(error)
    return HAS


def _first_sentence(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    sentence = re.split(r"(?<=[.;]) ", line)[0].rstrip(".")
    return sentence if len(sentence) <= LONGEST_REASON else f"{sentence[:LONGEST_REASON].rsplit(' ', 1)[0]} ..."
