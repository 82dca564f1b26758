"""The charts, in Vega-Lite: what the page draws, and what the PNGs are made of.

On the page the signals `task` and `shown`, the methods that are not filtered out, choose what a chart draws. The PNGs have
a panel a task.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import altair as alt
import pandas as pd

from pipeline.compare import tables
from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import AVERAGE
from pipeline.compare.tables import Flat

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # the version that altair writes for
# Okabe & Ito's color-blind safe set without yellow, which is too pale for lines; with seven shapes 49 pairs differ.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
BLUE, ORANGE, GREY = COLORS[0], COLORS[1], "#595959"
FONT = "DejaVu Sans"
OF_TASK, OF_SHOWN = "datum.task === task", "indexof(shown, datum.method) >= 0"
FAR_BELOW, LEAST_SPAN = 4.0, 2.0  # times what the best is above the median; percentage points
APART = 0.045  # of the range of scores: labels that are nearer would overlap
SIGNIFICANT = 0.05


def pareto(found: Comparison, size: str, title: str) -> alt.LayerChart:
    """Return scores with their intervals by a size, on a logarithmic axis, and the line of what nothing smaller beats.

    Methods without such a size, such as the head alone, are dashed lines; what is far below is named and not drawn.
    """
    data = pd.DataFrame(_pareto(found, size), columns=list(PARETO))
    base = alt.Chart(data)
    drawn = base.transform_filter("!datum.below && datum.size > 0")
    x = alt.X("size:Q", title=title).scale(type="log", nice=False, padding=24).axis(format="~s", tickCount=6)
    y = alt.Y("score:Q", title="score, %").scale(zero=False)
    tip = [alt.Tooltip("method:N"), *_numbers("score", "low", "high"), alt.Tooltip("size:Q", title=title, format=",")]
    tip += [alt.Tooltip("seeds:Q"), alt.Tooltip("status:N")]
    bars = drawn.mark_rule(opacity=0.55, strokeWidth=1.2).encode(x=x, y=alt.Y("low:Q", title="score, %"), y2="high:Q", color=_color(data))
    line = drawn.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeDash=[4, 3], color=GREY, strokeWidth=1
    ).encode(x=x, y=y)  # fmt: skip
    points = drawn.mark_point(filled=True, size=70, opacity=0.95).encode(
        x=x, y=y, color=_color(data), shape=_shape(data), tooltip=tip
    )
    labels = drawn.transform_filter("datum.label").mark_text(align="right", dx=-7, dy=-7, fontSize=10).encode(
        x=x, y=y, text="method:N"
    )  # fmt: skip
    none = base.transform_filter("!datum.below && !(datum.size > 0)")
    rules = none.mark_rule(strokeDash=[2, 3], color=GREY).encode(y=y, tooltip=tip)
    names = none.mark_text(align="left", baseline="bottom", dy=-3, dx=4, fontSize=10, color=GREY).encode(
        x=alt.value(0), y=y, text="method:N"
    )
    under = (
        base.transform_filter("datum.below")
        .transform_aggregate(names="values(said)", groupby=["task"])
        .transform_calculate(said="'below: ' + join(pluck(datum.names, 'said'), ', ')")
        .mark_text(align="right", baseline="bottom", fontSize=10, color=GREY, dx=-4, dy=-4, limit=300)
        .encode(x=alt.value("width"), y=alt.value("height"), text="said:N")
    )
    return alt.layer(bars, line, points, labels, rules, names, under)


PARETO = ("task", "method", "adapter", "size", "score", "low", "high", "seeds", "status", "below", "said", "front", "label")  # fmt: skip


def _pareto(found: Comparison, size: str) -> list[Flat]:
    listed = []
    for task, rows in found.rows.items():
        scored = [(row, row.score) for row in rows.values() if row.scores]
        limit = _limit([estimate.mean for _, estimate in scored if estimate.mean is not None])
        best = low = float("-inf")
        drawn = [estimate.mean for _, estimate in scored if estimate.mean is not None and estimate.mean >= limit]
        span = max(drawn, default=0) - min(drawn, default=0)
        for row, estimate in sorted(scored, key=lambda one: (getattr(one[0].size, size) or 0, -(one[1].mean or 0))):
            mean, numbers = estimate.mean, getattr(row.size, size)
            front = bool(numbers) and mean > best
            best = max(best, mean) if numbers else best
            label = front and mean >= low + APART * span
            low = mean if label else low
            listed.append({
                "task": task, "method": row.method, "adapter": row.adapter, "size": numbers, "score": mean,
                "low": estimate.low, "high": estimate.high, "seeds": estimate.seeds, "status": row.status,
                "below": mean < limit, "said": f"{row.method} {mean:.1f}", "front": front, "label": label,
            })  # fmt: skip
    return listed


def _limit(means: Sequence[float]) -> float:
    """Return the score below which a method would leave the others no room."""
    middle = median(means) if means else 0.0
    return middle - max(LEAST_SPAN, FAR_BELOW * (max(means, default=0.0) - middle))


def differences(found: Comparison) -> alt.LayerChart:
    """Return what each method is ahead of the baseline by: thick over seeds, thin over examples."""
    columns = ("task", "method", "difference", "difference_low", "difference_high", "difference_examples_low", "difference_examples_high", "p", "p_holm", "trained")  # fmt: skip
    kept = [row for row in tables.results(found) if row["difference"] is not None]
    data = pd.DataFrame([{name: row[name] for name in columns} for row in kept], columns=list(columns))
    data["differs"] = [_differs(p) for p in data["p_holm"]]
    base = alt.Chart(data)
    order = alt.EncodingSortField("difference", order="descending")
    y = alt.Y("method:N", title=None, sort=order).axis(labelLimit=190, ticks=False, domain=False)
    x = alt.X("difference:Q", title=f"percentage points ahead of {found.baseline}")
    color = alt.Color("differs:N", title=None).scale(domain=DIFFERS, range=[BLUE, GREY, "#AAAAAA"]).legend(**TOP)
    tip = [alt.Tooltip("method:N"), *_numbers("difference", "difference_low", "difference_high")]
    tip += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("p", "p_holm")]
    zero = base.mark_rule(color="#999999").encode(x=alt.datum(0))
    thin = base.mark_rule(strokeWidth=1.2, opacity=0.7).encode(
        x=alt.X("difference_examples_low:Q"), x2="difference_examples_high:Q", y=y, color=color
    )
    thick = base.mark_rule(strokeWidth=4, opacity=0.35).encode(x="difference_low:Q", x2="difference_high:Q", y=y, color=color)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=color, tooltip=tip)
    return alt.layer(zero, thick, thin, points)


DIFFERS = ["differs (Holm's p < 0.05)", "does not", "not tested"]
TOP: dict[str, Any] = {"orient": "top", "direction": "horizontal", "labelLimit": 260, "columns": 0}


def _differs(p: float | None) -> str:
    return DIFFERS[2] if p is None or p != p else DIFFERS[0] if p < SIGNIFICANT else DIFFERS[1]


def ranks(found: Comparison) -> alt.LayerChart | None:
    """Return the mean ranks over tasks with half of the critical difference to both sides; None without ranks."""
    if found.ranking is None:
        return None
    data = pd.DataFrame(tables.ranks(found))
    base = alt.Chart(data)
    y = alt.Y("method:N", title=None, sort=list(data["method"])).axis(labelLimit=190, ticks=False, domain=False)
    critical, p = found.ranking.critical_difference, found.ranking.p
    title = f"mean rank over {found.ranking.tasks} tasks (1 is best) ± half of the critical difference {critical:.2f}"
    x = alt.X("rank:Q", title=[title, f"Friedman's test: p = {p:.4f}"]).scale(zero=False)
    tip = [alt.Tooltip("method:N"), *_numbers("rank", "low", "high")]
    bars = base.mark_rule(strokeWidth=4, opacity=0.3, color=BLUE).encode(x=alt.X("low:Q"), x2="high:Q", y=y)
    return alt.layer(bars, base.mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(x=x, y=y, tooltip=tip))


def rates(found: Comparison) -> alt.LayerChart:
    """Return for one method the validation and test score by learning rate; crosses are what did not finish."""
    data = pd.DataFrame(tables.rates(found))
    data["rate_of_head"] = [f"{value:g}" for value in data["head_rate"]]
    base = alt.Chart(data)
    x = alt.X("rate:Q", title="learning rate").scale(type="log", nice=False, padding=10).axis(format="~e", tickCount=3)
    tip = [alt.Tooltip("method:N"), alt.Tooltip("rate:Q"), alt.Tooltip("head_rate:Q"), *_numbers("validation", "score")]
    tip += [alt.Tooltip("status:N"), alt.Tooltip("reason:N")]
    done = base.transform_filter("datum.status === 'finished'")
    y = alt.Y("validation:Q", title="validation score, %").scale(zero=False)
    line = done.mark_line(color=BLUE, strokeWidth=1.5).encode(x=x, y=y, detail="rate_of_head:N")
    dots = done.mark_point(filled=True, opacity=1).encode(
        x=x, y=y, tooltip=tip, size=alt.condition("datum.chosen", alt.value(110), alt.value(30)),
        color=alt.condition("datum.chosen", alt.value(ORANGE), alt.value(BLUE)),
    )  # fmt: skip
    lost = base.transform_filter("datum.status !== 'finished'").mark_point(shape="cross", angle=45, filled=True, color="#000000", size=60)
    return alt.layer(line, dots, lost.encode(x=x, y=alt.value(PANEL["height"] - 6), tooltip=tip))


def curves(found: Comparison) -> alt.LayerChart:
    """Return for one method the scores by epoch: the test split with its interval over seeds, and validation."""
    data = pd.DataFrame(tables.curves(found), columns=list(CURVES))
    base = alt.Chart(data)
    x = alt.X("epoch:Q", title="epoch").axis(format="d", tickMinStep=1).scale(nice=False)
    y = alt.Y("score:Q", title="score, %").scale(zero=False)
    tip = [alt.Tooltip("method:N"), alt.Tooltip("epoch:Q"), *_numbers("score", "score_low", "score_high", "validation", "loss")]
    tip += [alt.Tooltip("selected_by:Q", title="seeds that select it"), alt.Tooltip("seeds:Q")]
    band = base.mark_area(opacity=0.18, color=ORANGE).encode(x=x, y=alt.Y("score_low:Q"), y2="score_high:Q")
    test = base.mark_line(color=ORANGE, strokeWidth=1.5).encode(x=x, y=y)
    held = base.mark_line(color=BLUE, strokeWidth=1.5, strokeDash=[4, 2]).encode(x=x, y="validation:Q")
    dots = base.mark_point(filled=True, opacity=1, color=ORANGE).encode(
        x=x, y=y, tooltip=tip, size=alt.Size("selected_by:Q", legend=None).scale(range=[12, 140])
    )
    return alt.layer(band, held, test, dots)


CURVES = ("task", "method", "epoch", "loss", "validation", "score", "score_low", "score_high", "selected_by", "seeds")
PANEL = {"width": 190, "height": 130}


def _color(data: pd.DataFrame) -> alt.Color:
    words = sorted(set(data["adapter"]))
    colors = [COLORS[place % len(COLORS)] for place in range(len(words))]
    return alt.Color("adapter:N", title="adapter").scale(domain=words, range=colors)


def _shape(data: pd.DataFrame) -> alt.Shape:
    words = sorted(set(data["adapter"]))
    # Each time that the colors are used up, the shapes begin one further.
    shapes = [SHAPES[(place + place // len(COLORS)) % len(SHAPES)] for place in range(len(words))]
    return alt.Shape("adapter:N", title="adapter").scale(domain=words, range=shapes)


def _numbers(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".2f") for name in names]
