"""Write docs/capabilities.md: which of PEFT's behaviours LSR and other methods have.

`python -m docs.capabilities` asks each method by the probes of tests/lsr/citizenship.py, on tiny models.
"""

import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from tests.lsr.citizenship import BEHAVIOURS
from tests.lsr.subjects import METHODS, Subject

PAGE = Path(__file__).with_suffix(".md")
HAS = "yes"
LONGEST_REASON = 120


def column(method: str) -> dict[str, str]:
    """Return for each behaviour `HAS`, or the first sentence of why a method does not have it."""
    return {
        name: reason(behaviour.probe, Subject(behaviour.shown_on, method=method))
        for name, behaviour in BEHAVIOURS.items()
    }


def reason(probe: Callable[[Subject, Path], None], subject: Subject) -> str:
    """Return `HAS` if a probe passes, otherwise the first sentence of what it raises."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),  # progress bars
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            probe(subject, Path(folder))
        except Exception as error:  # whatever it is, it is what a user would get
            return _first_sentence(error)
    return HAS


def _first_sentence(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    sentence = re.split(r"(?<=[.;]) ", line)[0].rstrip(".")
    return sentence if len(sentence) <= LONGEST_REASON else f"{sentence[:LONGEST_REASON].rsplit(' ', 1)[0]} ..."


def page(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return the Markdown page: a table, and under it the reasons by number."""
    reasons = list(dict.fromkeys(text for name in BEHAVIOURS for c in columns.values() if (text := c[name]) != HAS))
    lines = [
        "# What works in PEFT",
        "",
        "Each row is a probe that runs for every method (`python -m docs.capabilities` writes this page, with peft "
        f"{version('peft')} and transformers {version('transformers')}). `yes`: it passes. A number: the reason below, "
        "in the words that a user gets, or else what the probe found. LSR's column is tested.",
        "",
        f"| behaviour | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in BEHAVIOURS:
        cells = [c[name] if c[name] == HAS else f"no [{reasons.index(c[name]) + 1}]" for c in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = [str(sum(text == HAS for text in c.values())) for c in columns.values()]
    lines += [f"| of {len(BEHAVIOURS)} | {' | '.join(counts)} |", ""]
    lines += [f"{number}. {text}" for number, text in enumerate(reasons, start=1)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ask all methods and write the page."""
    PAGE.write_text(page({method: column(method) for method in METHODS}), encoding="utf-8")


if __name__ == "__main__":
    main()
