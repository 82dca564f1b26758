"""Initialize the adapter from the seed, the base weights, gradients, a short training run, or another adapter.

Reads the base model, the facts in artifacts/tokens and, if the initialization needs them, the tokens or the other
adapter.
Writes artifacts/init/ (a PEFT adapter with its head, both before training) and reports/factorize_init/.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lsr.algebra.spectrum import Matrix, energy_between
from lsr.init import INITIALIZATIONS
from lsr.tuner.layer import LsrLinear
from lsr.tuner.lookup import groups_of
from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.core.errors import as_user_error
from pipeline.data import base_models, content, inputs, tokens
from pipeline.methods import adapters, banks, label_units, planning, statistics
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.planning import Plan
from pipeline.tasks import Task

SHOWN = 24  # layers or groups on the terminal; the file has all
COLUMNS = ("layer", "layers", "rank", "captured", "energy")
SHOWN_METRICS = ("energy", "start_read")  # metrics in DVC's tables
Row = tuple[str, int, int, str, float]  # one of COLUMNS


class Initialized(NamedTuple):
    """A model with an initialized adapter, and what the reports state about it."""

    model: PeftModel
    rows: Sequence[Row] = ()  # one per layer, or per group with shared bases; none for methods other than LSR
    sizes: Sequence[int] = ()  # sizes of the batches of examples that were read


def initialize(
    model: PeftModel,
    section: params.LsrParams,
    plan: Plan,
    read: Mapping[str, Matrix],
    of: str,
) -> list[Row]:
    """Initialize LSR from the statistics read; return a report row per layer, or per group with shared bases."""
    groups = groups_of(model, "default")
    captured = INITIALIZATIONS[section.scheme].reads if read else "weight"
    rows = list[Row]()
    count = sum(map(len, groups.values()))
    console.line(f"factorize-init: {section.init}, {count} layers, {len(groups)} initializations")
    with console.progress("factorize-init", len(groups), "initializations") as advance:

        def report(name: str) -> None:
            layers = groups[name]
            # A weight is not finite, unless the initialization has rejected it.
            with as_user_error(ValueError, before=f"{of}: {name}: "):
                energy = compute_captured_energy(layers, read)
            rank = layers[0].adapter("default").form.rank
            rows.append((name, len(layers), rank, captured, energy))
            advance(1)

        adapters.initialize(model, plan, read, report)
    return rows


def compute_captured_energy(layers: Sequence[LsrLinear], read: Mapping[str, Matrix]) -> float:
    """Return the share of the energy of the statistics, or else of the weights, that A and B can represent.

    It is the mean over layers. Without a core B starts at zero, so only the rows of A count.
    """
    adapter = layers[0].adapter("default")
    a, b = map(in_double, adapter.matrices())
    columns = b if adapter.has_core else None
    energies = list[float]()
    for layer in layers:
        matrix = read[layer.layer_name] if read else in_double(layer.base_matrix())
        energy = energy_between(matrix, a, columns)
        energies.append(energy)
    return fmean(energies)


def in_double(matrix: Tensor) -> Tensor:
    """Return a matrix on the CPU in double precision, without gradients."""
    return matrix.detach().cpu().double()


def main(view: params.FactorizeInitView) -> None:
    starts = inputs.starts(view)
    for key, source in starts.items():  # the adapters that it starts from are there, where DVC looks
        content.local(source, f"{params.PARAMS}: {key}", [content.MODELS])
    set_seed(view.seed)  # the head is drawn when the checkpoint loads
    task = tokens.load_task(view.dataset)
    base = base_models.load_base_model(view.base_model, task)
    label_units.center_head(base, task)
    base_models.check_positions(base, view.tokenize.max_length)
    tokenizer_of(base, view.base_model)  # refuses a model whose batches cannot be padded, before anything is trained
    if "tenants.shared_adapter" in starts:
        initialized = Initialized(banks.add_tenant_heads(base, view, task))
    else:
        initialized = build_initialized_model(view, task, base)
    with artifacts.replace_atomically(artifacts.INIT) as folder:
        folder.mkdir()
        adapters.save_adapter(initialized.model, folder, view.base_model)
    write_reports(initialized.rows, initialized.sizes)


def build_initialized_model(
    view: params.FactorizeInitView,
    task: Task,
    base: PreTrainedModel,
) -> Initialized:
    """Add an adapter to the base model, and initialize it."""
    sizes = list[int]()

    def track(items: Sequence[Any], title: str) -> Iterator[Any]:
        for item in console.track(items, f"{view.data}: {title}"):
            sizes.append(len(item["labels"]))
            yield item

    plan = planning.resolve(view, base)
    train = partial(tokens.load_tokens, "train")
    read = statistics.read(base, plan, view, task, train, track)
    model = adapters.add_adapter(base, plan, read)
    rows = list[Row]()
    if isinstance(plan.section, params.LsrParams):
        rows = initialize(model, plan.section, plan, read, view.model)
    return Initialized(model, rows, sizes)


def write_reports(rows: Sequence[Row], sizes: Sequence[int]) -> None:
    """Write report and metrics of an initialization that read batches of these sizes, and print its rows."""
    metrics: dict[str, float] = {
        "start_batches": len(sizes),
        "start_read": sum(sizes),
    }
    if rows:
        energies = [energy for *_, energy in rows]
        metrics["energy"] = fmean(energies)
    artifacts.write_metrics(artifacts.FACTORIZE_METRICS, metrics, SHOWN_METRICS)
    artifacts.write_csv(artifacts.FACTORIZE_START, COLUMNS, rows)
    if rows:
        console.table("share of the energy that the initialization captures", COLUMNS, rows[:SHOWN])


if __name__ == "__main__":
    stage.run(
        main,
        params.FactorizeInitView,
        "Initialize the adapter and its head: at random, or from the base weights, gradients, a short LoRA run or "
        "another adapter. Writes artifacts/init/ and reports/factorize_init/.",
    )
