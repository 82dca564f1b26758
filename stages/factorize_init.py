"""Start the adapter from the pretrained weights, or from what examples say about them.

Reads the base model, and artifacts/tokens where `lsr.init` looks at examples. Writes artifacts/init/ (an untrained PEFT
adapter with its head) and reports/factorize/.
"""

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from statistics import fmean
from time import perf_counter

import torch
from transformers import set_seed

from lsr.algebra.separable import condition_number, kron_sum, pad_columns, separation_errors
from lsr.algebra.spectrum import leading_row_space
from lsr.init.factorize import Start, random_factors
from lsr.init.quality import (
    ROUNDOFF,
    TOLERATED_LOSS,
    captured_by_lora,
    captured_by_rows,
    captured_by_svd,
    captured_by_update,
    update_condition_number,
)
from lsr.tuner.layer import LsrLayer
from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.evaluation import plots
from pipeline.methods import adapters, base_models

MOST_RANKS_BY_SEARCH = 16  # with more than two factors each error is a search of its own
LAYERS_SHOWN = 24  # in the terminal; the file has all
BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class LayerReport:
    """What a layer's start holds. Overlaps and energies are fractions in [0, 1], of numbers there are counts."""

    separation_rank: int
    trained: int
    stored: int
    effective: int
    overlap: float  # of row(A) with the row space aimed at: mean squared cosine
    overlap_random: float
    overlap_svd: float
    energy: float  # of the weight within row(A)
    energy_random: float
    energy_svd: float
    update_energy: float  # of the weight in scaling * B A, where that is not zero
    update_energy_svd: float
    error: float | None  # of the fit, relative to its target; None where nothing was fitted
    condition_a: float
    condition_b: float
    condition_update: float
    loss_bf16: float  # relative error of the update if its factors were stored in this dtype
    loss_fp16: float
    loss_fp32: float
    curve: tuple[float, ...]  # relative error of the nearest Kronecker sum at separation rank 1, 2, ...


def factorize_init(layer: LsrLayer, start: Start, seed: int, adapter_name: str = "default") -> LayerReport:
    """Measure a started layer beside a random factor of the same form and a truncated SVD of the same size."""
    form, sizes = layer.form[adapter_name], layer.sizes(adapter_name)
    weight = layer.base_matrix().double()
    aim = start.rows if start.rows is not None else leading_row_space(weight, form.rank, seed)
    drawn, _ = random_factors(form, True, torch.Generator().manual_seed(seed))
    a, b = (kron_sum(*side).double() for side in (start.a, start.b))
    slots = start.in_slots if start.in_slots is not None else torch.arange(form.in_features)
    out_slots = start.out_slots if start.out_slots is not None else torch.arange(form.out_features)
    trained = start.a if sizes.trained == sizes.effective else start.a[:1]
    in_a = sum(factor.numel() for factor in trained) + (0 if start.in_slots is None else len(slots))
    ours = captured_by_rows(weight, aim, a[:, slots])
    random = captured_by_rows(weight, aim, kron_sum(*drawn)[:, : form.in_features])
    svd = captured_by_svd(weight, form.rank, stored=in_a)
    conditions = [condition_number(*start.a), condition_number(*start.b), update_condition_number(start.a, start.b)]
    losses = [ROUNDOFF[dtype] * max(conditions) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    return LayerReport(
        *(form.separation_rank, sizes.trained, sizes.stored, sizes.effective),
        *(ours.overlap, random.overlap, svd.overlap),
        *(ours.energy, random.energy, svd.energy),
        update_energy=captured_by_update(weight, layer.scaling[adapter_name] * (b[out_slots] @ a[:, slots])),
        update_energy_svd=captured_by_lora(weight, sizes.stored),
        error=start.error,
        condition_a=conditions[0],
        condition_b=conditions[1],
        condition_update=conditions[2],
        loss_bf16=losses[0],
        loss_fp16=losses[1],
        loss_fp32=losses[2],
        curve=separation_curve(aim, form.rank_shape, form.in_shape, form.max_separation_rank, seed),
    )


def separation_curve(
    rows: torch.Tensor,  # (r, n)
    rank_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    most: int,
    seed: int,
) -> tuple[float, ...]:
    """Return the relative error of the nearest Kronecker sum to the rows at separation rank 1, 2, ..."""
    if len(rank_shape) > 2:
        most = min(most, MOST_RANKS_BY_SEARCH)
    padded = pad_columns(rows, prod(in_shape))
    return tuple(separation_errors(padded, rank_shape, in_shape, range(1, most + 1), seed))


def main(view: params.FactorizeInitView) -> None:
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.add_adapter(base, view.section, view.base_model, view.seed)
    reports, seconds = {}, 0.0
    if isinstance(view.section, params.LsrParams):
        examples = tokens.sample(base_models.load_tokenizer(view.base_model), view.section.examples, view.seed)
        started = adapters.start(model, view.section, examples)
        layers = sum(isinstance(module, LsrLayer) for module in model.modules())
        before = perf_counter()
        for name, layer, start in console.track(started, "factorize-init", layers, "layers"):
            seconds += perf_counter() - before
            try:
                reports[name] = factorize_init(layer, start, view.seed)
            except ValueError as error:  # a zero or broken weight; a start that reads it has refused it before
                raise UserError(f"{view.model}: layer {name}: {error}") from None
            before = perf_counter()
    counts = adapters.count_parameters(model, view.base_model)
    with artifacts.replacing(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
    write_reports(reports, counts, view)
    write_cost(seconds)


def write_cost(seconds: float) -> None:
    """Write and print what it took to start the layers, reports left out."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
    artifacts.write_metrics(artifacts.FACTORIZE_COST, {"start_seconds": seconds, "peak_resident_bytes": peak})
    console.line(f"factorize-init: {seconds:.1f} s to start the layers, at most {peak / 2**20:,.0f} MiB in memory")


def write_reports(
    reports: Mapping[str, LayerReport], counts: Mapping[str, int], view: params.FactorizeInitView
) -> None:
    """Write metrics, the table of layers, the curve and the pictures, and print the closing table."""
    columns = [field.name for field in fields(LayerReport) if field.name != "curve"]
    rows = [[name, *(getattr(report, column) for column in columns)] for name, report in reports.items()]
    found = {column: [getattr(report, column) for report in reports.values()] for column in columns}
    counted = ("trained", "stored", "effective", "separation_rank")
    means = {
        column: fmean(values)
        for column, values in found.items()
        if values and None not in values and column not in counted
    }
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, {**counts, **means})
    artifacts.write_csv(artifacts.FACTORIZE_LAYERS, ["layer", *columns], rows)
    curves = {name: report.curve for name, report in reports.items()}
    artifacts.write_csv(artifacts.FACTORIZE_CURVE, ["separation_rank", "relative_error"], mean_curve(curves))
    draw(reports, view)
    if reports:
        show(reports, view)
    console.table("factorize-init", ["what", "numbers"], list(counts.items()))


def draw(reports: Mapping[str, LayerReport], view: params.FactorizeInitView) -> None:
    """Draw the error against the separation rank, and the ranks that the layers got."""
    if not isinstance(view.section, params.LsrParams):
        for path in (artifacts.FACTORIZE_PICTURE, artifacts.FACTORIZE_BUDGET):
            plots.note(path, f"adapter {view.adapter}: it has no Kronecker factors")
        return
    curves = {name: report.curve for name, report in reports.items()}
    terms = {name: report.separation_rank for name, report in reports.items()}
    title = f"{view.model}: how separable is the row space that A aims at?"
    plots.separation_curves(artifacts.FACTORIZE_PICTURE, curves, terms, title)
    left = {name: report.curve[min(report.separation_rank, len(report.curve)) - 1] for name, report in reports.items()}
    total = sum(report.trained for report in reports.values())
    plots.budget(artifacts.FACTORIZE_BUDGET, terms, left, f"{view.model}: where {total:,} trained numbers are spent")


def show(reports: Mapping[str, LayerReport], view: params.FactorizeInitView) -> None:
    """Print the table of layers, and a line for each dtype in which an update would lose its precision."""
    title = "how much of the row space aimed at A starts with"
    if len(reports) > LAYERS_SHOWN:
        title = f"{title}: {LAYERS_SHOWN} of {len(reports)} layers"
    shown = [
        (layer, r.separation_rank, r.overlap, r.overlap_random, r.overlap_svd, "" if r.error is None else r.error)
        for layer, r in zip(plots.distinct_parts(list(reports)), reports.values(), strict=True)
    ]
    console.table(title, ["layer", "terms", "start", "random", "SVD of equal size", "error"], shown[:LAYERS_SHOWN])
    console.line(f"all columns: {artifacts.FACTORIZE_LAYERS}")
    for dtype in ("bf16", "fp16", "fp32"):
        worst = max(reports, key=lambda name: getattr(reports[name], f"loss_{dtype}"))
        loss = getattr(reports[worst], f"loss_{dtype}")
        if loss > TOLERATED_LOSS:
            console.warn(f"{dtype} would lose {loss:.0%} of the update in {worst}: its terms cancel; keep fp32")


def mean_curve(curves: Mapping[str, Sequence[float]]) -> list[tuple[int, float]]:
    """Return (separation rank, mean error over the layers that can have it), so that all layers are one line."""
    longest = max(map(len, curves.values()), default=0)
    return [(s, fmean(c[s - 1] for c in curves.values() if len(c) >= s)) for s in range(1, longest + 1)]


if __name__ == "__main__":
    stage.run(main, params.FactorizeInitView)
