"""The output of a comparison: tables, plots, the page, and a summary on the terminal."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipeline.arena.record import Record
from pipeline.compare import experiments, latex, markdown, pictures, tables
from pipeline.compare.comparison import Comparison, compare
from pipeline.compare.page import page
from pipeline.compare.rows import AVERAGE
from pipeline.compare.tables import Flat
from pipeline.compare.words import NONE, ahead, counted, probable, scored, several
from pipeline.core import artifacts, console

PAGE = "index.html"


def write(folder: Path, preset: str, records: Sequence[Record], options: Namespace) -> None:
    """Compare records and write all output.

    Raises:
        UserError: if there is no such baseline, DVC cannot be read, or a file cannot be written.
    """
    found = compare(preset, records, options.baseline, options.resamples)
    rows = experiments.rows(experiments.read()) if options.experiments else []
    write_tables(folder, found, rows)
    pictures.write(folder, found)
    console.line("drawing the page")
    _write(folder / PAGE, page(found, rows))
    _show(found)
    console.line(f"written: {folder / PAGE}, with tables and plots beside it")


def write_tables(folder: Path, found: Comparison, rows: Sequence[Flat]) -> None:
    """Write CSV, JSON, Markdown and LaTeX; `rows` are DVC experiments.

    Raises:
        UserError: if a file cannot be written.
    """
    for name in ("results", "trainings", "rates", "curves", "ranks"):
        _write_csv(folder / f"{name}.csv", getattr(tables, name)(found))
    if rows:
        _write_csv(folder / "experiments.csv", rows)
    _write(folder / "comparison.json", json.dumps(tables.everything(found) | {"experiments": rows}, indent=1) + "\n")
    _write(folder / "comparison.md", markdown.markdown(found, rows))
    _write(folder / "table.tex", latex.latex(found))


def _show(found: Comparison) -> None:
    rows = sorted(found.rows[AVERAGE].values(), key=lambda row: (-(row.score.mean or float("-inf")), row.method))
    title = f"{found.preset}: average of {several(len(found.tasks), 'task')}, percent; differences to {found.baseline}"
    columns = ("method", "score", "difference", "p (Holm)", "trained", "dof", "bytes", "seconds", "status")
    shown = []
    for row in rows:
        pair = found.pairs[AVERAGE].get(row.method)
        shown.append((
            row.method, scored(row.score), ahead(pair.over_seeds) if pair else NONE, probable(pair and pair.p_holm),
            counted(row.size.trained), counted(row.size.file_bytes),
            counted(row.size.seconds), row.status,
        ))  # fmt: skip
    console.table(title, columns, shown)
    console.line(tables.flattery(found))
    for line in found.lines:
        console.warn(line)


def _write_csv(path: Path, rows: Sequence[Flat]) -> None:
    columns = list(rows[0]) if rows else []
    flat = [["" if row[name] is None else _cell(row[name]) for name in columns] for row in rows]
    artifacts.write_csv(path, columns, flat)


def _cell(value: object) -> artifacts.Value:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _write(path: Path, text: str) -> None:
    with artifacts.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
