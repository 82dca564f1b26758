"""The contents of the tables, the plots and the page, computed once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.arena.record import Record
from pipeline.compare import against, examples, provenance
from pipeline.compare.against import Paired
from pipeline.compare.cells import Cell, by_task, cells
from pipeline.compare.examples import Examples
from pipeline.compare.ranking import Ranking, rank
from pipeline.compare.rows import AVERAGE, Row, average, missing, of_cell
from pipeline.core import console
from pipeline.core.errors import UserError, nearest

BASELINE = "LoRA r=1"
ALWAYS = {"LoRA r=1": "lora", "LoRA r=2": "lora", "LoRA r=8": "lora"}  # methods that every table includes
RESAMPLES = 10_000

ByTask = Mapping[str, Mapping[str, Row]]


class Comparison(NamedTuple):
    """A comparison of methods on the tasks of a preset. Rows and pairs are by task, or AVERAGE, and by method."""

    preset: str
    baseline: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # smallest first
    cells: Mapping[str, Mapping[str, Cell]]
    rows: ByTask
    pairs: Mapping[str, Mapping[str, Paired]]
    ranking: Ranking | None
    examples: Mapping[str, Examples]
    made: Mapping[str, list[str]]
    lines: tuple[str, ...]  # notes that a reader should know
    resamples: int


def compare(preset: str, records: Sequence[Record], baseline: str, resamples: int = RESAMPLES) -> Comparison:
    """Compare the methods of the records with one of them.

    Raises:
        UserError: if there is no such baseline, or a file of examples is not valid.
    """
    listed, dropped = cells(records)
    tasks = by_task(listed)
    methods = _methods(listed)
    _check_baseline(preset, baseline, [method for method in methods if any(method in row for row in tasks.values())])
    found, lines = examples.read(preset, tasks)
    rows = {task: {method: _row(tasks, task, method) for method in methods} for task in tasks}
    rows[AVERAGE] = {method: average([rows[task][method] for task in tasks]) for method in methods}
    made = provenance.provenance(records)
    if dropped:
        lines.append(f"{dropped:,} records left out: repeated, or from earlier settings of their method or preset")
    return Comparison(
        preset=preset,
        baseline=baseline,
        tasks=tuple(tasks),
        methods=methods,
        cells=tasks,
        rows=rows,
        pairs=_pairs(tasks, rows, baseline, found, resamples),
        ranking=rank({task: _means(rows[task]) for task in tasks}),
        examples=found,
        made=made,
        lines=(*provenance.mixed(made), *lines),
        resamples=resamples,
    )


def _check_baseline(preset: str, baseline: str, methods: Sequence[str]) -> None:
    if baseline not in methods:
        near = nearest(baseline, methods)
        raise UserError(f"--baseline: {preset} has no method {baseline!r}{near}; methods: {', '.join(methods)}")


def _methods(listed: Sequence[Cell]) -> tuple[str, ...]:
    """Return all methods, including those that every table includes, sorted by largest size."""
    sizes: dict[str, float] = {}
    for cell in listed:
        sizes[cell.method] = max(cell.shown.trained, sizes.get(cell.method, 0))
    sizes = {name: float("inf") for name in ALWAYS} | sizes
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _row(tasks: Mapping[str, Mapping[str, Cell]], task: str, method: str) -> Row:
    if method in tasks[task]:
        return of_cell(tasks[task][method])
    known = [row[method].shown.adapter for row in tasks.values() if method in row]
    metric = next(iter(tasks[task].values())).shown.metrics[0]
    return missing(task, method, known[0] if known else ALWAYS[method], metric)


def _means(rows: Mapping[str, Row]) -> dict[str, float]:
    return {method: row.score.mean for method, row in rows.items() if row.score.mean is not None}


def _pairs(
    tasks: Mapping[str, Mapping[str, Cell]],
    rows: ByTask,
    baseline: str,
    found: Mapping[str, Examples],
    resamples: int,
) -> dict[str, dict[str, Paired]]:
    differences = {}
    for task in console.track(tasks, "bootstrap", len(tasks), "tasks"):
        differences[task] = against.resampled(tasks[task], baseline, found[task], resamples) if task in found else {}
    differences[AVERAGE] = against.over_tasks(list(differences.values()))
    return {task: against.pairs(rows[task], baseline, differences[task]) for task in rows}
