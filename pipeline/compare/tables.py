"""The tables: flat rows for JSON and the page, Markdown for reading, and a summary for the terminal."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.compare.comparison import AVERAGE, Comparison, Row
from pipeline.compare.estimates import Estimate
from pipeline.core import console

NONE = "–"
DIGITS = 7  # significant ones in JSON
HEADER = (
    "method", "score", "difference", "p (Holm)", "trained", "stored", "bytes", "seconds", "peak MB", "seeds", "rate",
    "status",
)  # fmt: skip


def everything(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison for JSON."""
    return {
        "preset": comparison.preset,
        "baseline": comparison.baseline,
        "tasks": list(comparison.tasks),
        "methods": list(comparison.methods),
        "unit": "percent of each task's first metric; differences in percentage points",
        "protocol": protocol(comparison),
        "resamples": comparison.resamples,
        "notes": list(comparison.notes),
        "made": dict(comparison.made),
        "results": [_flat(comparison, row) for rows in comparison.rows.values() for row in rows.values()],
    }


def _flat(comparison: Comparison, row: Row) -> dict[str, Any]:
    pair = comparison.pairs[row.task].get(row.method)
    ahead = pair.over_seeds if pair else Estimate()
    flat = {
        "task": row.task,
        "method": row.method,
        "adapter": row.adapter,
        "metric": row.metric,
        "status": row.status,
        "reason": row.reason,
        "trainings": row.trainings,
        "seeds": row.score.seeds,
        "scores": {str(seed): _rounded(score) for seed, score in row.scores.items()},
        **row.score.flat("score"),
        "validation": row.validation,
        **ahead.flat("difference"),
        "difference_examples_low": pair and pair.low,
        "difference_examples_high": pair and pair.high,
        "p": pair and pair.p,
        "p_holm": pair and pair.p_holm,
        **row.size._asdict(),
        "rate": row.rate,
        "head_rate": row.head_rate,
        "rate_at_edge": row.at_edge,
    }
    return {name: _rounded(value) for name, value in flat.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown: methods by tasks first, then one table per task."""
    methods, tasks = several(len(comparison.methods), "method"), several(len(comparison.tasks), "task")
    columns = (*comparison.tasks, AVERAGE)
    overview = [
        [
            method,
            *(scored(row.score) if row.scores else row.status for row in (comparison.rows[c][method] for c in columns)),
            counted(comparison.rows[AVERAGE][method].size.trained),
        ]
        for method in comparison.methods
    ]
    lines = [f"# {comparison.preset}: {methods} on {tasks}", "", protocol(comparison)]
    lines += ["", *table(("method", *columns, "trained"), overview)]
    for task in (AVERAGE, *comparison.tasks):
        rows = comparison.rows[task]
        lines += ["", f"## {task}: {next(iter(rows.values())).metric}, baseline {comparison.baseline}", ""]
        lines += table(HEADER, [_cells(comparison, row) for row in rows.values()])
    if comparison.notes:
        lines += ["", "## Notes", "", *(f"- {_inline(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def protocol(comparison: Comparison) -> str:
    """Return in a few sentences how scores, intervals and p-values were obtained."""
    rows = (row for task in comparison.tasks for row in comparison.rows[task].values() if row.scores)
    seeds = sorted({row.score.seeds for row in rows}) or [0]
    many = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
    return (
        f"Scores are percent of each task's first metric on its test split, mean over {many} seeds ± half of the 95 % "
        "interval (Student's t). The validation split selects learning rate and epoch. Differences to "
        f"{comparison.baseline} are paired by seed; p is from a paired bootstrap over the test examples "
        f"({comparison.resamples:,} resamples), with Holm's correction for the methods of the task."
    )


def show(comparison: Comparison) -> None:
    """Print the averages over tasks, best first, and the notes."""
    rows = comparison.rows[AVERAGE].values()
    best_first = sorted(rows, key=lambda row: (-(row.score.mean or float("-inf")), row.method))
    title = f"{comparison.preset}: average of {several(len(comparison.tasks), 'task')}, percent"
    console.table(title, HEADER, [_cells(comparison, row) for row in best_first])
    for note in comparison.notes:
        console.warn(note)


def _cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    pair, size = comparison.pairs[row.task].get(row.method), row.size
    return (
        row.method,
        scored(row.score),
        ahead(pair.over_seeds) if pair else NONE,
        probable(pair and pair.p_holm),
        counted(size.trained),
        counted(size.stored),
        counted(size.bytes),
        counted(size.seconds),
        counted(size.peak_bytes and size.peak_bytes / 1e6),
        f"{row.score.seeds} of {row.trainings}",
        NONE if row.rate is None else f"{row.rate:g}{' (edge)' if row.at_edge else ''}",
        row.status + (f": {row.reason}" if row.reason else ""),
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"| {' | '.join(map(_inline, header))} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(_inline, row))} |" for row in rows)


def _inline(text: str) -> str:
    """Return text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def scored(value: Estimate) -> str:
    """Return the mean and half the width of the 95 % interval, as in "81.23 ± 0.45"."""
    if value.mean is None:
        return NONE
    return f"{value.mean:.2f}" if value.high is None else f"{value.mean:.2f} ± {value.high - value.mean:.2f}"


def ahead(value: Estimate) -> str:
    """Return a difference with its sign and interval."""
    if value.mean is None:
        return NONE
    return f"{value.mean:+.2f}" if value.low is None else f"{value.mean:+.2f} ({value.low:+.2f} to {value.high:+.2f})"


def counted(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}"


def probable(value: float | None) -> str:
    """Return a p-value."""
    return NONE if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def several(count: int, what: str) -> str:
    """Return a number of things, as in "1 task" and "5 tasks"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
