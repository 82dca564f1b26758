"""Start the adapter from the pretrained weights.

Reads the base model. Writes artifacts/init/ (an untrained PEFT adapter with its head) and reports/factorize/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from statistics import fmean

import torch
from transformers import set_seed

from lsr.factorize import captured_by_rows, captured_by_svd, leading_row_space, random_factors
from lsr.layer import LsrLayer
from lsr.separable import condition_number, kron_sum, pad_columns, separation_errors
from lsr.shapes import max_separation_rank
from pipeline import adapters, artifacts, console, models, params, plots, stage
from pipeline.errors import UserError

MOST_RANKS_BY_SEARCH = 16  # with more than two factors each error is a search of its own


@dataclass(frozen=True)
class LayerReport:
    """What the factor A of one layer captures of its weight: overlaps and energies are fractions in [0, 1]."""

    overlap: float
    overlap_random: float
    overlap_svd: float
    energy: float
    energy_random: float
    energy_svd: float
    relative_error: float
    condition_number: float
    curve: tuple[float, ...]  # relative error of the nearest Kronecker sum at separation rank 1, 2, ...


def factorize_init(layer: LsrLayer, adapter_name: str, seed: int) -> LayerReport:
    """Measure a started layer beside a random factor of the same form and a truncated SVD of the same size."""
    rank_shape, in_shape = layer.rank_shape[adapter_name], layer.in_shape[adapter_name]
    s, rank = layer.separation_rank[adapter_name], prod(rank_shape)
    weight = layer.base_matrix().double()
    leading = leading_row_space(weight, rank, seed)
    factors = [factor.detach().double() for factor in layer.factors(adapter_name)[0]]
    generator = torch.Generator().manual_seed(seed)
    drawn, _ = random_factors(
        rank_shape, in_shape, layer.out_shape[adapter_name], layer.in_features, s, True, generator
    )
    ours = captured_by_rows(weight, leading, kron_sum(*factors)[:, : layer.in_features])
    random = captured_by_rows(weight, leading, kron_sum(*drawn)[:, : layer.in_features])
    svd = captured_by_svd(weight, rank, stored=sum(factor.numel() for factor in factors))
    most = max_separation_rank(rank_shape, in_shape)
    if len(rank_shape) > 2:
        most = min(most, max(s, MOST_RANKS_BY_SEARCH))
    padded = pad_columns(leading, prod(in_shape))
    curve = separation_errors(padded, rank_shape, in_shape, range(1, most + 1), seed)
    return LayerReport(
        *(ours.overlap, random.overlap, svd.overlap),
        *(ours.energy, random.energy, svd.energy),
        relative_error=curve[s - 1],
        condition_number=condition_number(*factors),
        curve=tuple(curve),
    )


def main(view: params.FactorizeInitView) -> None:
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    base = models.load_base_model(view.base_model, view.dataset)
    model = adapters.add_adapter(base, view.section, view.base_model, view.seed)
    reports = {}
    if isinstance(view.section, params.LsrParams):
        started = adapters.start(model, view.section)
        layers = sum(isinstance(module, LsrLayer) for module in model.modules())
        for name, layer in console.track(started, "factorize-init", layers, "layers"):
            try:
                reports[name] = factorize_init(layer, "default", view.seed)
            except ValueError as error:  # a zero or broken weight; a start that reads it has refused it before
                raise UserError(f"{view.model}: layer {name}: {error}") from None
    counts = adapters.count_parameters(model, view.base_model)
    with artifacts.replacing(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
    write_reports(reports, counts, view)


def write_reports(
    reports: Mapping[str, LayerReport], counts: Mapping[str, int], view: params.FactorizeInitView
) -> None:
    """Write metrics, the table of layers, the curve and its picture, and print the closing table."""
    columns = [field.name for field in fields(LayerReport) if field.name != "curve"]
    rows = [[name, *(getattr(report, column) for column in columns)] for name, report in reports.items()]
    means = {column: fmean(getattr(report, column) for report in reports.values()) for column in columns if reports}
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, {**counts, **means})
    artifacts.write_csv(artifacts.FACTORIZE_LAYERS, ["layer", *columns], rows)
    curves = {name: report.curve for name, report in reports.items()}
    artifacts.write_csv(artifacts.FACTORIZE_CURVE, ["separation_rank", "relative_error"], mean_curve(curves))
    if isinstance(view.section, params.LsrParams):
        title = f"{view.model}: how separable is the leading row space?"
        plots.separation_curves(artifacts.FACTORIZE_PICTURE, curves, view.section.separation_rank, title)
    else:
        plots.note(artifacts.FACTORIZE_PICTURE, f"adapter {view.adapter}: it has no Kronecker factors")
    if reports:
        shown = [(name, report.overlap, report.overlap_random, report.overlap_svd) for name, report in reports.items()]
        title = "share of the leading row space that A starts with (more in reports/factorize/layers.csv)"
        console.table(title, ["layer", "this start", "a random start", "an SVD of equal size"], shown)
    console.table("factorize-init", ["what", "numbers"], list(counts.items()))


def mean_curve(curves: Mapping[str, Sequence[float]]) -> list[tuple[int, float]]:
    """Return (separation rank, mean error over the layers that can have it), so that all layers are one line."""
    longest = max(map(len, curves.values()), default=0)
    return [(s, fmean(c[s - 1] for c in curves.values() if len(c) >= s)) for s in range(1, longest + 1)]


if __name__ == "__main__":
    stage.run(main, params.FactorizeInitView)
