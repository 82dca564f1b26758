"""Write docs/reference/capabilities.md, which of PEFT's features LSR and other methods have: `make capabilities`.

The probes of tests/capabilities run on tiny models.
"""

import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipeline.core import artifacts, console
from pipeline.core.console import Parser
from tests.capabilities.probes import BEHAVIORS
from tests.old_tiny.subjects import METHODS, Subject

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/capabilities.md"
HAS = "yes"
LONGEST_REASON = 120


def main() -> None:
    """Probe all methods and write the page."""
    columns = {method: column(method) for method in console.track(list(METHODS), "capabilities", "methods")}
    with artifacts.replace_atomically(PAGE) as temporary:
        temporary.write_text(page(columns), encoding="utf-8")


def column(method: str) -> dict[str, str]:
    """Return for each behavior `HAS`, or the first sentence of the reason why a method lacks it."""
    return {
        name: answer(behavior.probe, Subject(behavior.shown_on, method=method)) for name, behavior in BEHAVIORS.items()
    }


def answer(probe: Callable[[Subject, Path], None], subject: Subject) -> str:
    """Return `HAS` if a probe passes, otherwise the first sentence of its exception."""
    with (
        tempfile.TemporaryDirectory() as folder,
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


def page(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return the Markdown page: a table, followed by the numbered reasons."""
    behaviors = list(next(iter(columns.values())))
    reasons = reasons_in(columns, behaviors)
    lines = [
        "# What works in PEFT",
        "",
        "Each row is a probe that runs with every method (`make capabilities`, with peft "
        f"{version('peft')} and transformers {version('transformers')}). `yes` means that it passes. The number after "
        "`no` refers to the reasons below: the error message or what the probe found. A test checks LSR's column.",
        "",
        f"| behavior | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in behaviors:
        cells = [_cell(answers[name], reasons) for answers in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = [str(list(answers.values()).count(HAS)) for answers in columns.values()]
    lines.append(f"| of {len(behaviors)} | {' | '.join(counts)} |")
    lines.append("")
    for number, reason in enumerate(reasons, start=1):
        lines.append(f"{number}. {reason}")
    return "\n".join(lines) + "\n"


def reasons_in(columns: Mapping[str, Mapping[str, str]], behaviors: Iterable[str]) -> list[str]:
    """Return all reasons, each once, in the order of the table."""
    answers = [answers[name] for name in behaviors for answers in columns.values()]
    return [text for text in dict.fromkeys(answers) if text != HAS]


def _cell(text: str, reasons: Sequence[str]) -> str:
    return HAS if text == HAS else f"no [{reasons.index(text) + 1}]"


if __name__ == "__main__":
    about = (
        "Test PEFT's features with LSR, LoRA, LoKr and VeRA on tiny models, and write docs/reference/capabilities.md."
    )
    with Parser("python -m docs.capabilities", about).parse():
        main()
