"""The layout of papers: rows are methods, columns are tasks, the average and the number of parameters."""

from collections.abc import Iterator

from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import AVERAGE, Row
from pipeline.compare.words import counted


def header(found: Comparison) -> tuple[str, ...]:
    """Return the names of the columns."""
    return "method", *found.tasks, AVERAGE, "parameters"


def rows(found: Comparison) -> Iterator[tuple[str, list[Row], str]]:
    """Yield for each method its name, its rows by column, and the number of trained parameters of its adapter."""
    for method in found.methods:
        columns = [found.rows[task][method] for task in (*found.tasks, AVERAGE)]
        yield method, columns, counted(columns[-1].size.trained)


def note(found: Comparison) -> str:
    """Return a sentence on how the scores were obtained."""
    seeds = sorted({row.score.seeds for task in found.tasks for row in found.rows[task].values() if row.scores})
    many = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else "0"
    return f"The validation split selects learning rate and epoch; {many} seeds; parameters: of the adapter, trained."
