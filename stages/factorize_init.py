"""Start the adapter from the seed, from the pretrained weights, or from what examples say about them.

Reads the base model, and artifacts/tokens where `lsr.init` looks at examples. Writes artifacts/init/ (an untrained PEFT
adapter with its head) and reports/factorize_init/.
"""

import resource
import sys
from time import perf_counter

from peft import PeftModel
from transformers import set_seed

from lsr.algebra.precision import TOLERATED_LOSS
from lsr.tuner.linear import adapted_layers
from lsr.tuner.start_report import StartReport, report_start
from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.evaluation import start_report
from pipeline.methods import adapters, base_models

BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


def factorize_init(model: PeftModel, view: params.FactorizeInitView) -> tuple[dict[str, StartReport], float]:
    """Initialize an LSR adapter; return what each layer starts with, and the seconds that it took, reports left out.

    Raises:
        UserError: if a weight or the examples do not allow it.
    """
    assert isinstance(view.section, params.LsrParams)
    examples = tokens.sample(base_models.load_tokenizer(view.base_model), view.section.examples, view.seed)
    started = adapters.start(model, view.section, examples)
    reports, seconds, before = {}, 0.0, perf_counter()
    for name, layer, start in console.track(started, "factorize-init", len(adapted_layers(model)), "layers"):
        seconds += perf_counter() - before
        try:
            reports[name] = report_start(layer, start, view.seed)
        except ValueError as error:  # a zero or broken weight; an initialization that reads it has refused it before
            raise UserError(f"{view.model}: layer {name}: {error}") from None
        before = perf_counter()
    return reports, seconds


def main(view: params.FactorizeInitView) -> None:
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.add_adapter(base, view.section, view.base_model, view.seed)
    is_lsr = isinstance(view.section, params.LsrParams)
    reports, seconds = factorize_init(model, view) if is_lsr else ({}, 0.0)
    with artifacts.replacing(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
    columns = {name: report.columns() for name, report in reports.items()}
    curves = {name: report.curve for name, report in reports.items()}
    counts = adapters.count_parameters(model, view.base_model)
    start_report.write(columns, curves, counts, view.model, view.adapter, TOLERATED_LOSS)
    write_cost(seconds)


def write_cost(seconds: float) -> None:
    """Write and print what it took to initialize the layers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
    artifacts.write_metrics(artifacts.FACTORIZE_COST, {"start_seconds": seconds, "peak_resident_bytes": peak})
    console.line(f"factorize-init: {seconds:.1f} s to start the layers, at most {peak / 2**20:,.0f} MiB in memory")


if __name__ == "__main__":
    stage.run(main, params.FactorizeInitView)
