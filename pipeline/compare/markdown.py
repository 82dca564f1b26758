"""The tables as Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.compare import paper
from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import AVERAGE, Row
from pipeline.compare.tables import Flat, flattery
from pipeline.compare.words import NONE, ahead, counted, mean, probable, scored, several

HEADER = (
    "method", "score", "difference", "p (Holm)", "trained", "stored", "bytes", "seconds",
    "peak MB", "seeds", "last epoch", "best epoch on test (flatters)", "status",
)  # fmt: skip


def markdown(found: Comparison, experiments: Sequence[Flat] = ()) -> str:
    """Return the tables in Markdown: first in the layout of papers, then one table per task."""
    shown = [f"# {found.preset}: {several(len(found.methods), 'method')} on {several(len(found.tasks), 'task')}", ""]
    shown += [
        "Scores are percent of each task's first metric, mean over seeds ± half of the 95 % interval. "
        + paper.note(found)
    ]
    shown += ["", *table(paper.header(found), _paper_rows(found))]
    for task in (AVERAGE, *found.tasks):
        rows = found.rows[task]
        metric = next(iter(rows.values())).metric
        shown += ["", f"## {task}: {metric}, baseline {found.baseline}", ""]
        shown += table(HEADER, [_cells(found, row) for row in rows.values()])
    if experiments:
        cells = [[_plain(value) for value in row.values()] for row in experiments]
        shown += ["", "## DVC experiments", "", *table(list(experiments[0]), cells)]
    shown += ["", "## Notes", "", *(f"- {_inline(line)}" for line in (*found.lines, _sentence(flattery(found))))]
    return "\n".join(shown) + "\n"


def _cells(found: Comparison, row: Row) -> tuple[str, ...]:
    pair, size = found.pairs[row.task].get(row.method), row.size
    return (
        row.method,
        scored(row.score),
        ahead(pair.over_seeds) if pair else NONE,
        probable(pair.p_holm) if pair else NONE,
        counted(size.trained),
        counted(size.stored),
        counted(size.file_bytes),
        counted(size.seconds),
        counted(size.peak_bytes and size.peak_bytes / 1e6),
        f"{row.score.seeds} of {row.runs}",
        mean(row.last),
        mean(row.best),
        row.status + (f": {row.reason}" if row.reason else ""),
    )


def _paper_rows(found: Comparison) -> Iterator[list[str]]:
    for method, rows, parameters in paper.rows(found):
        yield [method, *(scored(row.score) if row.scores else row.status for row in rows), parameters]


def _plain(value: object) -> str:
    return NONE if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(map(_inline, header))} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(_inline, row))} |" for row in rows)


def _inline(text: str) -> str:
    """Return text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
