"""The tables: flat rows for JSON and the page, and a summary for the terminal."""

from typing import Any

from pipeline.compare.comparison import Comparison
from pipeline.compare.estimates import PERCENT, Estimate
from pipeline.compare.precision import LOSS
from pipeline.compare.rows import Row
from pipeline.core import console

NONE = "–"
DIGITS = 7  # significant ones in JSON
COLUMNS = ("method", "score", "lead", "verdict", "trained", "bytes", "status")  # on the terminal


def everything(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison for JSON."""
    rows = [row for rows in comparison.rows.values() for row in rows.values()]
    outcomes = [
        {**one.hypothesis.model_dump(), "held": one.held, **one.verdict._asdict()} for one in comparison.hypotheses
    ]
    return {
        **{name: value for name, value in comparison._asdict().items() if name != "rows"},
        "protocol": protocol(comparison),
        "hypotheses": [_flat(one) for one in outcomes],
        "results": [_flat({**row._asdict(), **row.verdict._asdict()}) for row in rows],
    }


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with few digits, the ends of intervals as values of their own, and seeds as texts."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            flat |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = _flat({str(key): one for key, one in value.items()}) if isinstance(value, dict) else value
    return {name: float(f"{one:.{DIGITS}g}") if isinstance(one, float) else one for name, one in flat.items()}


def protocol(comparison: Comparison) -> str:
    """Return in a few sentences how scores, intervals and verdicts were obtained."""
    return (
        "Scores are percent of each task's first metric on its test split, mean over seeds ± half of the 95 % "
        "interval (Student's t). The validation split selects learning rate and epoch. Leads over "
        f"{comparison.baseline} are paired by seed; errors are standard errors, 95 % intervals and p-values are from a "
        f"bootstrap over seeds and test examples, and for averages over tasks ({comparison.resamples:,} resamples). "
        "Better, worse: p < 0.05 after Holm's correction for the number of methods. Equivalent: two one-sided tests at "
        f"5 % find the lead within {comparison.margin:g} points. Bytes are those of the smallest precision that costs "
        f"at most {PERCENT * LOSS:g} points on the validation split, where a file has been rounded."
    )


def show(comparison: Comparison) -> None:
    """Print the main average, best first, and the notes; all else is on the page."""
    rows = comparison.rows[comparison.main].values()
    best_first = sorted(rows, key=lambda row: (row.score.mean is None, -(row.score.mean or 0.0), row.method))
    console.table(f"{comparison.preset}: {comparison.main}, percent", COLUMNS, map(_cells, best_first))
    for note in comparison.notes:
        console.warn(note)


def _cells(row: Row) -> list[console.Cell]:
    mean, _, high = row.score
    half = "" if mean is None or high is None else f" ± {high - mean:.2f}"
    lead = row.verdict.difference
    return [
        row.method,
        NONE if mean is None else f"{mean:.2f}{half}",
        NONE if lead is None else f"{lead:+.2f}",
        row.verdict.verdict or NONE,
        NONE if row.trained is None else row.trained,
        NONE if row.bytes is None else row.bytes,
        row.status + (f": {row.reason}" if row.reason else ""),
    ]
