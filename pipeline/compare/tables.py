"""The tables: flat rows for JSON and the page, and a summary for the terminal."""

from typing import Any

from pipeline.compare.comparison import Comparison
from pipeline.compare.estimates import PERCENT, Estimate
from pipeline.compare.precision import LOSS
from pipeline.compare.rows import Row
from pipeline.compare.verdicts import Outcome, Verdict
from pipeline.core import console

NONE = "–"
DIGITS = 7  # significant ones in JSON
INTERVAL, ERRORS = "95 % interval", "errors: seeds, examples"


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
        "▲ better, ▼ worse: p < 0.05 after Holm's correction for the number of methods. = equivalent: two one-sided "
        f"tests at 5 % find the lead within {comparison.margin:g} points. No sign: undecided. Bytes are those of the "
        f"smallest precision that costs at most {PERCENT * LOSS:g} points on the validation split, where a file has "
        "been rounded."
    )


def show(comparison: Comparison) -> None:
    """Print the main average, best first, what became of the hypotheses, and the notes."""
    rows = comparison.rows[comparison.main].values()
    best_first = sorted(rows, key=lambda row: (-(row.score.mean or float("-inf")), row.method))
    title = f"{comparison.preset}: {comparison.main}, percent"
    shown = [_cells(row) for row in best_first]
    console.table(title, list(shown[0]), [list(one.values()) for one in shown])
    if outcomes := [_outcome(one) for one in comparison.hypotheses]:
        console.table("hypotheses", list(outcomes[0]), [list(one.values()) for one in outcomes])
    for note in comparison.notes:
        console.warn(note)


def _cells(row: Row) -> dict[str, str]:
    """Return what the summary says of a method, by the header of the column."""
    return {
        "method": row.method,
        "score": _scored(row.score),
        **_tested(row.verdict),
        "trained": _counted(row.trained),
        "bytes": _counted(row.bytes),
        "status": row.status + (f": {row.reason}" if row.reason else ""),
    }


def _outcome(one: Outcome) -> dict[str, str]:
    """Return what the summary says of a hypothesis, by the header of the column."""
    within = _between(one.verdict.equivalence_low, one.verdict.equivalence_high)
    held = "not tested" if one.verdict.verdict is None else "yes" if one.held else "no"
    return {**one.hypothesis.model_dump(), "held": held, **_tested(one.verdict), "90 % interval": within}


def _tested(found: Verdict) -> dict[str, str]:
    both = (found.error_seeds, found.error_examples)
    return {
        "lead": NONE if found.difference is None else f"{found.difference:+.2f}",
        INTERVAL: _between(found.difference_low, found.difference_high),
        ERRORS: ", ".join(NONE if one is None else f"{one:.2f}" for one in both),
        "p (Holm)": _probable(found.p_holm),
        "verdict": found.verdict or NONE,
    }


def _scored(value: Estimate) -> str:
    """Return the mean and half the width of the 95 % interval, as in "81.23 ± 0.45"."""
    if value.mean is None:
        return NONE
    return f"{value.mean:.2f}" if value.high is None else f"{value.mean:.2f} ± {value.high - value.mean:.2f}"


def _between(low: float | None, high: float | None) -> str:
    """Return the ends of an interval, as in "-0.31 to +1.02"."""
    return NONE if low is None else f"{low:+.2f} to {high:+.2f}"


def _counted(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}"


def _probable(value: float | None) -> str:
    """Return a p-value."""
    return NONE if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
