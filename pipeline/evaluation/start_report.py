"""The reports of factorize-init: metrics, a table of layers or kinds, curves and their plot."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pipeline.core import artifacts, console
from pipeline.evaluation import plots
from pipeline.evaluation.plots import Frames

SHOWN = 24  # layers shown on the terminal; the file has all
COUNTED = ("trained", "stored", "effective", "separation_rank", "layers", "rank")

Columns = Mapping[str, Any]  # of one layer or kind, by name; None if nothing was fitted


class Separation(NamedTuple):
    """The separability of the target row space of a layer's A."""

    errors: Sequence[float]  # relative, at separation rank 1, 2, ...
    separation_rank: int


def write(
    columns: Mapping[str, Columns],
    separation: Mapping[str, Separation],
    frames: Mapping[str, Frames],
    counts: Mapping[str, int],
    model: str,
    adapter: str,
    tolerated_loss: float,  # relative error of the update from which on a dtype causes a warning
) -> None:
    """Write all reports of the stage and print its tables of layers or frames, if there are any."""
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, {**counts, **_means(columns)})
    names = list(next(iter(columns.values()), {}))
    rows = [[name, *("" if value is None else value for value in row.values())] for name, row in columns.items()]
    artifacts.write_csv(artifacts.FACTORIZE_LAYERS, ["layer", *names], rows)
    errors = {name: one.errors for name, one in separation.items()}
    artifacts.write_csv(artifacts.FACTORIZE_CURVE, ["separation_rank", "relative_error"], mean_curve(errors))
    artifacts.write_csv(artifacts.FACTORIZE_FRAMES, ["rank", "energy", "frames"], mean_energies(frames))
    if separation:
        terms = {name: one.separation_rank for name, one in separation.items()}
        title = f"{model}: how separable is the target row space of A?"
        plots.separation_curves(artifacts.FACTORIZE_PICTURE, errors, terms, title)
        show(columns, tolerated_loss)
    elif frames:
        plots.captured_energies(
            artifacts.FACTORIZE_PICTURE, frames, f"{model}: how much do frames of each rank capture?"
        )
        show_frames(columns)
    else:
        plots.note(artifacts.FACTORIZE_PICTURE, f"adapter {adapter}: not initialized by this stage")
    console.table("factorize-init", ["what", "parameters"], list(counts.items()))


def show(layers: Mapping[str, Columns], tolerated_loss: float) -> None:
    """Print the table of layers, and a line for each dtype in which an update would lose precision."""
    shown = [
        (name, r["separation_rank"], r["overlap"], r["overlap_random"], r["overlap_svd"], r["error"] or "")
        for name, r in zip(plots.distinct_parts(list(layers)), layers.values(), strict=True)
    ]
    title = _title("share of the target row space that the initial A captures", layers)
    console.table(title, ["layer", "terms", "start", "random", "SVD of equal size", "error"], shown[:SHOWN])
    console.line(f"all columns: {artifacts.FACTORIZE_LAYERS}")
    for dtype in ("bf16", "fp16", "fp32"):
        worst = max(layers, key=lambda name: layers[name][f"loss_{dtype}"])
        loss = layers[worst][f"loss_{dtype}"]
        if loss > tolerated_loss:
            console.warn(f"{dtype} would lose {loss:.0%} of the update in {worst}: its terms cancel; keep fp32")


def show_frames(kinds: Mapping[str, Columns]) -> None:
    """Print the table of kinds, or of layers with frames of their own."""
    energies = [name for name in next(iter(kinds.values())) if name.startswith("energy_")]
    shown = [
        (name, row["layers"], row["rank"], *(row[energy] for energy in energies))
        for name, row in zip(plots.distinct_parts(list(kinds)), kinds.values(), strict=True)
    ]
    heads = [name.removeprefix("energy_").replace("_", ", ") for name in energies]
    console.table(
        _title("share of the energy that the frames capture", kinds),
        ["frames of", "layers", "rank", *heads],
        shown[:SHOWN],
    )
    console.line(f"all columns: {artifacts.FACTORIZE_LAYERS}")


def mean_curve(curves: Mapping[str, Sequence[float]]) -> list[tuple[int, float]]:
    """Return (separation rank, mean error over the layers that reach it): one curve for all layers."""
    longest = max(map(len, curves.values()), default=0)
    return [(s, fmean(c[s - 1] for c in curves.values() if len(c) >= s)) for s in range(1, longest + 1)]


def mean_energies(frames: Mapping[str, Frames]) -> Iterator[tuple[int, float, str]]:
    """Yield (rank, mean energy over layers or kinds, name of the curve)."""
    for name in dict.fromkeys(name for one in frames.values() for name in one.curves):
        curves = {key: one.curves[name] for key, one in frames.items() if name in one.curves}
        for rank, energy in mean_curve(curves):
            yield rank, energy, name


def _means(columns: Mapping[str, Columns]) -> dict[str, float]:
    return {
        name: fmean(row[name] for row in columns.values())
        for name in next(iter(columns.values()), {})
        if name not in COUNTED and None not in [row[name] for row in columns.values()]
    }


def _title(text: str, rows: Mapping[str, object]) -> str:
    return f"{text}: {SHOWN} of {len(rows)}" if len(rows) > SHOWN else text
