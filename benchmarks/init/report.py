"""The table of results as Markdown, CSV, JSON and a picture."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import isnan
from pathlib import Path
from textwrap import fill

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.init.experiment import BASELINE, METHODS, RATES, REFERENCES, SEEDS, SIZES
from benchmarks.init.summary import SHARE, Row
from pipeline import artifacts, console
from pipeline.evaluation import plots

COLUMNS = ("method", "parameters", "learning rate", "test score", f"over {BASELINE}", "steps")
PANELS_ABREAST = 4


def write(table: Sequence[Row], folder: Path) -> None:
    """Write table.md, table.csv, table.json and table.png into a folder, and print the table."""
    flat = [row.flat() for row in table]
    with artifacts.replacing(folder / "table.json") as path:
        path.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")
    values = [["" if value is None else value for value in fields.values()] for fields in flat]
    artifacts.write_csv(folder / "table.csv", list(flat[0]), values)
    with artifacts.replacing(folder / "table.md") as path:
        path.write_text("".join(f"{line}\n" for line in markdown(table)), encoding="utf-8")
    draw(folder / "table.png", table)
    for setting, its_rows in _by_setting(table).items():
        console.table(setting, COLUMNS, map(cells, its_rows))


def cells(row: Row) -> tuple[str, ...]:
    """Return a row in words, by COLUMNS."""
    rate = f"{row.rate:g}{' (edge)' if row.at_edge else ''}"
    steps = "–" if row.steps is None else str(row.steps)
    return row.method, f"{row.trained:,}", rate, row.test.words(".3f"), row.gain.words("+.3f"), steps


def markdown(table: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of an overview and of one table a setting."""
    settings = _by_setting(table)
    yield from _caption()
    yield ""
    yield from _lines(("method", *settings), overview(settings))
    for setting, its_rows in settings.items():
        yield f"\n### {setting}\n"
        yield from _lines(COLUMNS, map(cells, its_rows))


def _caption() -> Iterator[str]:
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    yield f"Test scores after one epoch of {SIZES.train:,} texts of at most {SIZES.longest} tokens in bf16, mean over"
    yield f"{len(SEEDS)} seeds with a 95 % interval; up to {SIZES.test:,} test texts. The learning rate is the one of"
    yield f"{rates} with the best score on {SIZES.validation} validation texts, with the first seed and for each"
    yield "method; (edge): it is the least or the greatest of them, so another might be better."
    yield f"*Over {BASELINE}* is the mean difference to {BASELINE} with the same seed; **bold** where its interval"
    yield "excludes 0, as it does by chance alone once in twenty. *Steps* is when the mean validation score, taken"
    yield f"{SIZES.evaluations} times, reaches {SHARE:.0%} of what the best LSR method ends at."
    yield "*(removed)*: the project no longer has it; its figures are kept, and it is never run again."


def overview(settings: Mapping[str, Sequence[Row]]) -> Iterator[Sequence[str]]:
    """Yield for each method its test score in each setting, bold where it differs from the baseline's."""
    for method in _methods(settings):
        found = [next((row for row in its_rows if row.method == method), None) for its_rows in settings.values()]
        yield method, *(_short(row) if row else "" for row in found)


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the test scores with their intervals, a panel a setting; a line marks the baseline."""
    settings = _by_setting(table)
    methods = _methods(settings)
    lines = -(-len(settings) // PANELS_ABREAST)
    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(12, 0.6 + 3.2 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, PANELS_ABREAST, sharey=True, squeeze=False)
        grid[0, 0].set_yticks(range(len(methods)), methods)
        grid[0, 0].invert_yaxis()
        for axes, (setting, its_rows) in zip(grid.flat, settings.items(), strict=False):
            _panel(axes, setting, its_rows, methods)
        for axes in grid.flat[len(settings) :]:
            axes.set_axis_off()
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=plots.DOTS_PER_INCH, metadata={"Software": None})


def _panel(axes: Axes, setting: str, its_rows: Sequence[Row], methods: Sequence[str]) -> None:
    for row in its_rows:
        color = plots.ORANGE if row.method == BASELINE else plots.GREY if row.method in REFERENCES else plots.BLUE
        place = methods.index(row.method)
        axes.plot(row.test.mean, place, "o", color=color, markersize=4)
        axes.plot((row.test.low, row.test.high), (place, place), color=color, linewidth=1.5)
        if row.method == BASELINE:
            axes.axvline(row.test.mean, color=color, linewidth=0.8, linestyle="--")
    axes.set_title(fill(setting, 30), fontsize=9)
    axes.set_xlabel("test score")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _short(row: Row) -> str:
    mark = "**" if row.gain.low > 0 or row.gain.high < 0 else ""
    half = "" if isnan(row.test.low) else f" ± {row.test.mean - row.test.low:.3f}"
    return f"{mark}{row.test.mean:.3f}{mark}{half}"


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"


def _methods(settings: Mapping[str, Sequence[Row]]) -> list[str]:
    """The methods of all settings; those that are removed stand last."""
    return list(METHODS | REFERENCES | {row.method: {} for its_rows in settings.values() for row in its_rows})


def _by_setting(table: Sequence[Row]) -> dict[str, list[Row]]:
    return {setting: list(its_rows) for setting, its_rows in groupby(table, key=lambda row: row.setting)}
