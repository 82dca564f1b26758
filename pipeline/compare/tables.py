"""The tables as lists of flat rows, for CSV, JSON, the plots and the page."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from pipeline.arena.record import Record
from pipeline.compare.cells import FINISHED, best_epoch
from pipeline.compare.comparison import Comparison
from pipeline.compare.estimates import estimate
from pipeline.compare.rows import PERCENT, Row

Flat = dict[str, Any]


def results(found: Comparison) -> list[Flat]:
    """Return a row for each method on each task and over all tasks; scores and differences in percent."""
    return [_result(found, row) for rows in found.rows.values() for row in rows.values()]


def _result(found: Comparison, row: Row) -> Flat:
    pair = found.pairs[row.task].get(row.method)
    return {
        "task": row.task,
        "method": row.method,
        "adapter": row.adapter,
        "status": row.status,
        "metric": row.metric,
        **row.score.flat("score"),
        "seeds": row.score.seeds,
        "trainings": row.runs,
        "last_epoch": _mean(row.last),
        "best_epoch_on_test": _mean(row.best),  # optimistic
        "flattery": row.flattery,
        "validation": _mean(row.validation),
        **(pair.over_seeds.flat("difference") if pair else dict.fromkeys(_names("difference"))),
        "difference_examples_low": pair and pair.low,
        "difference_examples_high": pair and pair.high,
        "p": pair and pair.p,
        "p_holm": pair and pair.p_holm,
        **row.size._asdict(),
        "rate": row.rate,
        "head_rate": row.head_rate,
        "rate_at_edge": row.at_edge,
        "reason": row.reason,
    }


def trainings(found: Comparison) -> list[Flat]:
    """Return a row for each training in the tables: each try of a rate, and each seed at the chosen one."""
    return [_training(record, chosen) for record, chosen in _records(found)]


def _training(record: Record, chosen: bool) -> Flat:
    done = record.status == FINISHED
    return {
        "task": record.task,
        "method": record.method,
        "rate": record.rate,
        "head_rate": record.head_rate,
        "seed": record.seed,
        "counts": chosen,
        "status": record.status,
        "selected_epoch": record.selected + 1 if done else None,
        "score": PERCENT * record.score() if done else None,
        "last_epoch": PERCENT * record.score(-1) if done else None,
        "best_epoch_on_test": PERCENT * record.score(best_epoch(record)) if done else None,
        "validation": PERCENT * record.validation[record.selected] if done else None,
        "metrics": {name: PERCENT * record.score(metric=name) for name in record.metrics} if done else {},
        "seconds": sum(record.seconds.values()),
        "peak_bytes": record.peak_bytes,
        "key": record.key,
        "reason": record.reason,
    }


def _records(found: Comparison) -> Iterator[tuple[Record, bool]]:
    for row in found.cells.values():
        for cell in row.values():
            counted = {run.key for run in cell.runs} if cell.chosen else set()
            every = {record.key: record for record in (*cell.tries, *cell.runs)}
            yield from ((record, record.key in counted) for record in every.values())


def rates(found: Comparison) -> list[Flat]:
    """Return a row for each learning rate that was tried, with the first seed."""
    return [
        {
            "task": cell.task,
            "method": cell.method,
            "rate": one.rate if one.rate is not None else one.head_rate,
            "head_rate": one.head_rate,
            "seed": one.seed,
            "status": one.status,
            "chosen": cell.chosen is not None and one.key == cell.chosen.key,
            "validation": PERCENT * one.validation[one.selected] if one.status == FINISHED else None,
            "score": PERCENT * one.score() if one.status == FINISHED else None,
            "reason": one.reason,
        }
        for row in found.cells.values()
        for cell in row.values()
        for one in cell.tries
    ]


def curves(found: Comparison) -> list[Flat]:
    """Return a row for each epoch of each method on each task: means over seeds, and how many seeds selected it."""
    listed = []
    for row in found.cells.values():
        for cell in row.values():
            epochs = min((len(run.test) for run in cell.finished), default=0)
            for epoch in range(epochs):
                test = estimate([run.score(epoch) for run in cell.finished]).scaled(PERCENT)
                listed.append(
                    {
                        "task": cell.task,
                        "method": cell.method,
                        "epoch": epoch + 1,
                        "loss": fmean(run.loss[epoch] for run in cell.finished),
                        "validation": PERCENT * fmean(run.validation[epoch] for run in cell.finished),
                        **test.flat("score"),
                        "selected_by": sum(run.selected == epoch for run in cell.finished),
                        "seeds": len(cell.finished),
                    }
                )
    return listed


def ranks(found: Comparison) -> list[Flat]:
    """Return the mean rank of each method, best first; two differ if their ranges do not overlap."""
    if found.ranking is None:
        return []
    half = found.ranking.critical_difference / 2
    items = found.ranking.ranks.items()
    return [{"method": name, "rank": value, "low": value - half, "high": value + half} for name, value in items]


def everything(found: Comparison) -> Flat:
    """Return the whole comparison for JSON."""
    return {
        "preset": found.preset,
        "baseline": found.baseline,
        "tasks": list(found.tasks),
        "methods": list(found.methods),
        "unit": "percent of each task's first metric; differences in percentage points",
        "resamples": found.resamples,
        "notes": list(found.lines),
        "made": dict(found.made),
        "results": results(found),
        "trainings": trainings(found),
        "rates": rates(found),
        "curves": curves(found),
        "ranks": ranks(found),
        "ranking": found.ranking
        and {key: found.ranking._asdict()[key] for key in ("critical_difference", "p", "tasks")},
    }


def flattery(found: Comparison) -> str:
    """Return a line on the gain from selecting the epoch on the test split."""
    rows = [
        (row.flattery, row) for task in found.tasks for row in found.rows[task].values() if row.flattery is not None
    ]
    if not rows:
        return "nothing finished, so there is no epoch to choose"
    most, row = max(rows, key=lambda one: (one[0], one[1].task, one[1].method))
    mean = fmean(value for value, _ in rows)
    return (
        f"the epoch that is best on the test split itself would add {mean:.2f} points on average, and up to {most:.2f} "
        f"({row.method} on {row.task}); all tables and plots use the epoch selected on the validation split"
    )


def _names(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _mean(scores: Mapping[int, float]) -> float | None:
    return fmean(scores.values()) if scores else None
