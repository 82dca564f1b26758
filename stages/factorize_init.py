"""Initialize the adapter from the seed, the base weights, gradients, a short training run, or another adapter.

Reads the base model and, if the initialization needs them, artifacts/tokens or the other adapter.
Writes artifacts/init/ (a PEFT adapter with its head, both before training) and reports/factorize_init/.
"""

from collections.abc import Mapping
from statistics import fmean

from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from lsr.init import INITIALIZATIONS
from lsr.tuner.options import OWN
from lsr.tuner.start import groups_of
from lsr.tuner.start_report import StartReport, report_start
from pipeline import params, stage, tasks
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.data import base_models, content
from pipeline.methods import adapters, planning, statistics

SHOWN = 24  # layers or kinds on the terminal; the file has all
COLUMNS = ("layers", "rank", "captured", "energy", "energy_best")


def factorize_init(
    base: PreTrainedModel, view: params.FactorizeInitView
) -> tuple[PeftModel, dict[str, StartReport], statistics.Read]:
    """Add an adapter to a base model and initialize it; return the starts of LSR by layer or kind, and what they read.

    Raises:
        UserError: if the section does not fit the model, or a weight or the examples are not suitable.
    """
    plan = planning.resolve(view.section, base, view.base_model, view.seed, tasks.of(view.dataset).peft_task)
    read = statistics.read(base, plan, view)
    model = adapters.add_adapter(base, plan, read.layers)
    section = plan.section
    if not isinstance(section, params.LsrParams):
        return model, {}, read
    started = adapters.start(model, plan, read.layers)
    reports, groups = {}, groups_of(model, "default")
    if section.frames == OWN:
        console.line(f"factorize-init: {section.init}, {sum(map(len, groups.values()))} layers, {len(groups)} starts")
    for one in console.track(started, "factorize-init", len(groups), "starts"):
        try:
            reports[one.name] = report_start(one, read.layers, view.seed, INITIALIZATIONS[section.scheme].reads)
        except ValueError as error:  # a weight that is not finite, unless the initialization has rejected it
            raise UserError(f"{view.model}: {one.name}: {error}") from None
    return model, reports, read


def check_adapters(section: params.MethodParams) -> None:
    """Check that the adapters that a section starts from are there, and where DVC notices a change.

    Raises:
        UserError: if one is not.
    """
    if isinstance(section, params.LsrParams):
        for key, source in {"init": section.source, "frames": section.frames}.items():
            if source not in {None, OWN}:
                content.local(str(source), f"{params.PARAMS}: {section.word}.{key}", [content.MODELS])


def main(view: params.FactorizeInitView) -> None:
    check_adapters(view.section)
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    base_models.check_positions(base, view.tokenize.max_length)
    model, reports, read = factorize_init(base, view)
    with artifacts.replacing(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
    write_reports(reports, read)


def write_reports(reports: Mapping[str, StartReport], read: statistics.Read) -> None:
    """Write the metrics and the table of layers or kinds, and print them."""
    means = {
        name: fmean(getattr(one, name) for one in reports.values()) for name in ("energy", "energy_best") if reports
    }
    passes = {"start_batches": read.batches, "start_read": read.examples}
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, {**passes, **means})
    rows = [(name, *(getattr(one, column) for column in COLUMNS)) for name, one in reports.items()]
    artifacts.write_csv(artifacts.FACTORIZE_START, ("layer", *COLUMNS), rows)
    if rows:
        console.table("share of the energy that the start captures", ("layer", *COLUMNS), rows[:SHOWN])


if __name__ == "__main__":
    stage.run(main, params.FactorizeInitView)
