"""The reports of factorize-init: metrics, a table of layers, a curve and its picture."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipeline import artifacts, console
from pipeline.evaluation import plots

LAYERS_SHOWN = 24  # in the terminal; the file has all
COUNTED = ("trained", "stored", "effective", "separation_rank")

Columns = Mapping[str, Any]  # of one layer, by name; None where nothing was fitted


def write(
    layers: Mapping[str, Columns],
    curves: Mapping[str, Sequence[float]],  # by layer: relative error at separation rank 1, 2, ...
    counts: Mapping[str, int],
    model: str,
    adapter: str,
    tolerated_loss: float,  # relative error of the update from which on a dtype is warned about
) -> None:
    """Write all of the stage's reports, and print its tables; `layers` is empty where nothing is factorized."""
    columns = list(next(iter(layers.values()), {}))
    means = {
        column: fmean(report[column] for report in layers.values())
        for column in columns
        if column not in COUNTED and None not in [report[column] for report in layers.values()]
    }
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, {**counts, **means})
    rows = [[name, *("" if value is None else value for value in report.values())] for name, report in layers.items()]
    artifacts.write_csv(artifacts.FACTORIZE_LAYERS, ["layer", *columns], rows)
    artifacts.write_csv(artifacts.FACTORIZE_CURVE, ["separation_rank", "relative_error"], mean_curve(curves))
    if layers:
        terms = {name: report["separation_rank"] for name, report in layers.items()}
        title = f"{model}: how separable is the row space that A aims at?"
        plots.separation_curves(artifacts.FACTORIZE_PICTURE, curves, terms, title)
        show(layers, tolerated_loss)
    else:
        plots.note(artifacts.FACTORIZE_PICTURE, f"adapter {adapter}: it has no Kronecker factors")
    console.table("factorize-init", ["what", "parameters"], list(counts.items()))


def show(layers: Mapping[str, Columns], tolerated_loss: float) -> None:
    """Print the table of layers, and a line for each dtype in which an update would lose its precision."""
    title = "how much of the row space aimed at A starts with"
    if len(layers) > LAYERS_SHOWN:
        title = f"{title}: {LAYERS_SHOWN} of {len(layers)} layers"
    shown = [
        (name, r["separation_rank"], r["overlap"], r["overlap_random"], r["overlap_svd"], r["error"] or "")
        for name, r in zip(plots.distinct_parts(list(layers)), layers.values(), strict=True)
    ]
    console.table(title, ["layer", "terms", "start", "random", "SVD of equal size", "error"], shown[:LAYERS_SHOWN])
    console.line(f"all columns: {artifacts.FACTORIZE_LAYERS}")
    for dtype in ("bf16", "fp16", "fp32"):
        worst = max(layers, key=lambda name: layers[name][f"loss_{dtype}"])
        loss = layers[worst][f"loss_{dtype}"]
        if loss > tolerated_loss:
            console.warn(f"{dtype} would lose {loss:.0%} of the update in {worst}: its terms cancel; keep fp32")


def mean_curve(curves: Mapping[str, Sequence[float]]) -> list[tuple[int, float]]:
    """Return (separation rank, mean error over the layers that can have it), so that all layers are one line."""
    longest = max(map(len, curves.values()), default=0)
    return [(s, fmean(c[s - 1] for c in curves.values() if len(c) >= s)) for s in range(1, longest + 1)]
