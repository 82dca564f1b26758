"""The comparison as a LaTeX table for papers."""

import re
from collections.abc import Iterable

from pipeline.compare import paper
from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import Row

LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def latex(found: Comparison) -> str:
    """Return the table, for the package booktabs; the best of each column is bold."""
    best = {task: _best(rows.values()) for task, rows in found.rows.items()}
    lines = [
        f"% {escaped(paper.note(found))}",
        rf"\begin{{tabular}}{{l{'c' * len(found.rows)}r}}",
        r"\toprule",
        " & ".join(map(escaped, paper.header(found))) + r" \\",
        r"\midrule",
    ]
    for method, rows, parameters in paper.rows(found):
        cells = [_latex_score(row, best[row.task]) for row in rows]
        lines.append(" & ".join([escaped(method), *cells, parameters]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _best(rows: Iterable[Row]) -> float | None:
    return max((row.score.mean for row in rows if row.score.mean is not None), default=None)


def _latex_score(row: Row, best: float | None) -> str:
    value = row.score
    if value.mean is None:
        return rf"\textit{{{escaped(row.status)}}}"
    shown = rf"\textbf{{{value.mean:.2f}}}" if value.mean == best else f"{value.mean:.2f}"
    half = "" if value.high is None else rf"$_{{\pm {value.high - value.mean:.2f}}}$"
    return shown + half + (f"$^{{{value.seeds}/{row.runs}}}$" if value.seeds < row.runs else "")


def escaped(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return re.sub(r"[&%$#_{}\\~^<>|]", lambda found: LATEX[found[0]], text)
