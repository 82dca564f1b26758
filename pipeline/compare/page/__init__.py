"""The page: one self-contained HTML file that loads nothing else."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.compare import charts, commands, disagreements, paper, tables
from pipeline.compare.comparison import ALWAYS, Comparison
from pipeline.compare.pictures import SIZES
from pipeline.compare.rows import AVERAGE
from pipeline.compare.tables import Flat
from pipeline.compare.words import several

Spec = dict[str, Any]
GLOBALS = "window.vegaEmbed = vegaEmbed;"
FIT = {"type": "fit-x", "contains": "padding"}  # for charts as wide as the page, with a height of their own
HEIGHT = 18  # pixels per method
SEVERAL = ("rates", "curves")  # charts with a panel per method


def page(found: Comparison, experiments: Sequence[Flat] = ()) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("page.html"))
    return template.render(
        found=found,
        methods=several(len(found.methods), "method"),
        tasks=several(len(found.tasks), "task"),
        trainings=len(tables.trainings(found)),
        note=paper.note(found),
        flattery=tables.flattery(found),
        about_ranks=charts.about_ranks(found),
        average=AVERAGE,
        made=found.made,
        experiments=experiments,
        style=_inside("style", _bundle("dt_bundle.css") + _file("page.css")),
        data=_json(_data(found, experiments)),
        libraries=_json({"datatables": _bundle("dt_bundle.js"), "vega": _vega()}),
        script=_inside("script", _file("page.js")),
    )


def _data(found: Comparison, experiments: Sequence[Flat]) -> Flat:
    return {
        "average": AVERAGE,
        "baseline": found.baseline,
        "tasks": list(found.tasks),
        "methods": list(found.methods),
        "always": list(ALWAYS),
        "results": tables.results(found),
        "details": _details(found),
        "unfinished": [row for row in tables.trainings(found) if row["status"] != "finished"],
        "experiments": list(experiments),
        "disagreements": {task: disagreements.of_task(found, task) for task in found.tasks},
        "names": {task: list(examples.names) for task, examples in found.examples.items()},
        "charts": _charts(found),
        "several": list(SEVERAL),
        "ranked": list(found.ranking.ranks) if found.ranking else [],
        "height": HEIGHT,
    }


def _details(found: Comparison) -> dict[str, dict[str, Flat]]:
    """Return, by task and method, how to rerun it, and the scores of all seeds."""
    return {
        task: {
            method: {
                "command": commands.command(cell.shown),
                "snippet": commands.snippet(cell.shown),
                "scores": {str(seed): round(score, 4) for seed, score in found.rows[task][method].scores.items()},
                "reason": cell.reason,
            }
            for method, cell in cells.items()
        }
        for task, cells in found.cells.items()
    }


def _charts(found: Comparison) -> dict[str, Spec]:
    whole: dict[str, alt.LayerChart] = {
        f"pareto-{size}": charts.pareto(found, size, title).properties(width="container", height=360)
        for size, title in SIZES.items()
    }
    if any(found.pairs.values()):
        whole["differences"] = charts.differences(found).properties(
            width="container", height=HEIGHT * len(found.methods)
        )
    specs = {
        name: _interactive(chart.transform_filter(charts.OF_TASK).transform_filter(charts.OF_SHOWN), found)
        for name, chart in whole.items()
    }
    if found.ranking is not None and (ranking := charts.ranks(found)) is not None:
        shown = ranking.properties(width="container", height=HEIGHT * len(found.ranking.ranks)).transform_filter(
            charts.OF_SHOWN
        )
        specs["ranks"] = _interactive(shown, found)
    for name in SEVERAL:
        chart = getattr(charts, name)(found).properties(**charts.PANEL)
        facet = alt.Facet("method:N", title=None, sort=list(found.methods)).header(labelLimit=charts.PANEL["width"])
        several = chart.facet(facet=facet, columns=1).resolve_scale(y="independent").resolve_axis(x="independent")
        specs[name] = _interactive(several.transform_filter(charts.OF_TASK).transform_filter(charts.OF_SHOWN), found)
    return specs


def _interactive(chart: alt.TopLevelMixin, found: Comparison) -> Spec:
    chart = chart.configure(font="system-ui, sans-serif", background="transparent")
    chart = chart.configure_axis(titleFontWeight="normal", gridColor=charts.GRID)
    spec = chart.configure_legend(orient="bottom", symbolOpacity=1, labelLimit=300).to_dict()
    if spec.get("width") == "container":
        spec["autosize"] = FIT
    spec["params"] = [{"name": "task", "value": AVERAGE}, {"name": "shown", "value": list(found.methods)}]
    return spec


def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in the versions that the charts target."""
    return vl_convert.javascript_bundle(GLOBALS, vl_version=charts.VEGA_LITE)


def _json(value: Mapping[str, Any]) -> Markup:
    """Return JSON in which no text can end or begin an HTML element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704 it is escaped


def _inside(element: str, code: str) -> Markup:
    """Return code as the content of a script or style element, in which nothing is escaped.

    Raises:
        ValueError: if it would end the element.
    """
    if f"</{element}" in code.lower():
        raise ValueError(f"code ends its element: </{element}")
    return Markup(code)  # noqa: S704 it is our own, or that of a pinned package


def _bundle(name: str) -> str:
    return (files("itables") / "html" / name).read_text(encoding="utf-8")


def _file(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
