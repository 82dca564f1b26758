"""Initialize the adapter from the seed, the pretrained weights, the gradient over examples, or a short training run.

Reads the base model and, if the initialization needs examples, artifacts/tokens or the pooled rows.
Writes artifacts/init/ (a PEFT adapter with its head, both before training) and reports/factorize_init/.
"""

import resource
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from lsr.algebra.precision import TOLERATED_LOSS
from lsr.init import INITIALIZATIONS
from lsr.tuner.config import CORED
from lsr.tuner.start import groups_of
from lsr.tuner.start_report import FramesReport, StartReport, report_frames, report_start
from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.evaluation import plots, start_report
from pipeline.methods import adapters, base_models, eva, pooling

BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


class Measured(NamedTuple):
    """Reports on initialized layers and on frames of layers or kinds, by name; seconds without the measurements."""

    layers: dict[str, StartReport]
    frames: dict[str, FramesReport]
    seconds: float


def factorize_init(base: PreTrainedModel, view: params.FactorizeInitView) -> tuple[PeftModel, Measured]:
    """Add an adapter to a base model, initialize it, and measure the initialization of LSR.

    Raises:
        UserError: if the section does not fit the model, or a weight or the examples are not suitable.
    """
    section, measured, begin = view.section, Measured({}, {}, 0.0), perf_counter()
    if not isinstance(section, params.LsrParams):
        model = adapters.add_adapter(base, section, view.base_model, view.seed)
        if isinstance(section, params.LoraParams) and section.reads_examples:
            eva.start(model, pooling.examples_of(view, section.examples, pooling.BATCH["gradient"]))
        return model, measured._replace(seconds=perf_counter() - begin)
    gradients = pooling.gradients(base, view) if section.reads_examples else []
    model = adapters.add_adapter(base, section, view.base_model, view.seed, gradients)
    started = adapters.start(model, section, gradients)
    seconds, before = perf_counter() - begin, perf_counter()
    for one in console.track(started, "factorize-init", len(groups_of(model, "default")), "starts"):
        seconds += perf_counter() - before
        try:
            if section.train in CORED:
                read = INITIALIZATIONS[section.init].reads
                measured.frames[one.name] = report_frames(one, gradients, view.seed, read=read)
            else:
                measured.layers[one.name] = report_start(one.layers[0], one.start, view.seed)
        except ValueError as error:  # a weight that is zero or not finite, unless the initialization has rejected it
            raise UserError(f"{view.model}: {one.name}: {error}") from None
        before = perf_counter()
    return model, measured._replace(seconds=seconds)


def main(view: params.FactorizeInitView) -> None:
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    base_models.check_positions(base, view.tokenize.max_length)
    model, (layers, frames, seconds) = factorize_init(base, view)
    with artifacts.replacing(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
    start_report.write(
        {name: report.columns() for name, report in (layers | frames).items()},
        {name: start_report.Separation(one.curve, one.separation_rank) for name, one in layers.items()},
        {name: plots.Frames(one.curves(), one.rank, _by_terms(one)) for name, one in frames.items()},
        adapters.count_parameters(model, view.base_model),
        view.model,
        view.adapter,
        TOLERATED_LOSS,
    )
    write_cost(seconds)


def _by_terms(report: FramesReport) -> Mapping[int, float]:
    """Return the energy by number of Kronecker terms: of gradients or updates, or of the weight without examples."""
    return next(iter(report.by_terms.values()))


def write_cost(seconds: float) -> None:
    """Write and print the time and memory that initialization took."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
    artifacts.write_metrics(artifacts.FACTORIZE_COST, {"start_seconds": seconds, "peak_resident_bytes": peak})
    console.line(f"factorize-init: {seconds:.1f} s to initialize the layers, at most {peak / 2**20:,.0f} MiB in memory")


if __name__ == "__main__":
    stage.run(main, params.FactorizeInitView)
