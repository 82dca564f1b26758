"""The charts as PNG files: one panel per task, or one file per task with a panel per method."""

from collections.abc import Iterator
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

import altair as alt
import matplotlib
import vl_convert
from PIL import Image

from pipeline.compare import charts, tables
from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import AVERAGE
from pipeline.core import artifacts, console

SIZES = {
    "trained": "trained parameters of the adapter",
    "file_bytes": "bytes of the adapter's file, including the head",
}
LONGEST_NAME = 220  # pixels
DOTS = 2.0  # pixels of the PNG file per pixel of the chart
COLORS = 256  # of the PNG file: a chart has few, and their shades at edges
ABREAST, METHODS_ABREAST = 3, 5  # panels


def write(folder: Path, found: Comparison) -> list[str]:
    """Write all plots into a folder and return their names.

    Raises:
        UserError: if they cannot be written.
    """
    # DejaVu comes with matplotlib, so that plots do not depend on the fonts of the machine.
    vl_convert.register_font_directory(str(Path(matplotlib.get_data_path(), "fonts/ttf")))
    drawn = dict(_pictures(found))
    for name, chart in console.track(drawn.items(), "draw", len(drawn), "pictures"):
        with artifacts.replacing(folder / name) as temporary:
            temporary.write_bytes(_png(chart))
    return list(drawn)


def _png(chart: alt.TopLevelMixin) -> bytes:
    drawn = vl_convert.vegalite_to_png(chart.to_dict(), vl_version=charts.VEGA_LITE, scale=DOTS)
    small = BytesIO()  # about a ninth of what was drawn, which looks the same
    Image.open(BytesIO(drawn)).convert("RGB").quantize(COLORS).save(small, "PNG", optimize=True)
    return small.getvalue()


def _pictures(found: Comparison) -> Iterator[tuple[str, alt.TopLevelMixin]]:
    order = [*found.tasks, AVERAGE] if len(found.tasks) > 1 else list(found.tasks)
    for size, title in SIZES.items():
        chart = charts.pareto(found, size, title).properties(width=330, height=260)
        yield f"pareto-{size.replace('_', '-')}.png", _by_task(chart, order, found)
    if any(found.pairs.values()):
        chart = charts.differences(found).properties(width=260, height=alt.Step(16))
        yield "differences.png", _by_task(chart, order, found)
    if (ranking := charts.ranks(found)) is not None:
        yield "ranks.png", _dressed(ranking.properties(width=460, height=alt.Step(18), title=charts.about_ranks(found)))
    for task in found.tasks:
        yield f"rates-{task}.png", _by_method(charts.rates(found), task, found)
        if any(row["task"] == task for row in tables.curves(found)):
            yield f"curves-{task}.png", _by_method(charts.curves(found), task, found)


def _by_task(chart: alt.LayerChart, order: list[str], found: Comparison) -> alt.TopLevelMixin:
    facet = alt.Facet("task:N", title=None, sort=order)
    whole = chart.facet(facet=facet, columns=min(ABREAST, ceil(sqrt(len(order)))))
    whole = whole.transform_filter(alt.FieldOneOfPredicate("task", order))
    return _dressed(whole.resolve_scale(x="shared", y="independent").resolve_axis(x="independent"))


def _by_method(chart: alt.LayerChart, task: str, found: Comparison) -> alt.TopLevelMixin:
    facet = alt.Facet("method:N", title=None, sort=list(found.methods))
    panels = chart.properties(**charts.PANEL).facet(facet=facet, columns=min(METHODS_ABREAST, len(found.cells[task])))
    panels = panels.transform_filter(alt.datum.task == task).resolve_scale(y="independent")
    return _dressed(panels.properties(title=task).resolve_axis(x="independent"))


def _dressed(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    chart = chart.configure(font=charts.FONT, background="white").configure_legend(symbolOpacity=1, labelLimit=300)
    chart = chart.configure_title(fontSize=11, fontWeight="normal", anchor="start")
    return chart.configure_axis(
        labelFontSize=10, labelLimit=LONGEST_NAME, titleFontSize=10, titleFontWeight="normal", gridColor=charts.GRID
    )
