"""Statistics that an initialization needs besides the weights: gradients, updates, or another adapter."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel

from lsr.algebra.spectrum import Matrix
from lsr.init import read_examples
from lsr.init.context import Matrices
from lsr.init.passes import Batch, Track, hide_progress
from lsr.loading.contents import Contents, check_layers, read_contents
from lsr.serve.shared_adapter import last_layer
from lsr.tuner.files import TASK, adapter_folder, read_files
from lsr_onnx.errors import some_of
from lsr_onnx.task import TENANTS
from pipeline.core import console
from pipeline.core.errors import UserError, as_user_error
from pipeline.data import tokens
from pipeline.methods.adapter_task import AdapterTask
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.methods.heads import last_layer_of_base
from pipeline.methods.label_units import standardize_numbers
from pipeline.methods.planning import Plan
from pipeline.methods.shared_rows import share_rows
from pipeline.params import PARAMS, FactorizeInitView, LsrParams
from pipeline.params.sections import SHORT_BATCH, SHORT_RUNS, SHORT_STEPS, enough_epochs
from pipeline.tasks import Task

GRADIENT_BATCH = 32  # examples
NUMBER = "a number"  # stands for a label in regression
SHOWN = 4  # labels in a message


def read(
    base: PreTrainedModel,
    plan: Plan,
    view: FactorizeInitView,
    task: Task,
    train: Callable[[], Dataset],  # returns the tokens of that split
    track: Track = hide_progress,
) -> Matrices:
    """Compute the gradients or updates of layers that the initialization of a plan needs; empty if it needs none.

    Statistics of examples are over a sample of tokens, after the head was fitted to it. In a warm start, the base model
    keeps the trained head. Groups of tenants share rows of the head, as when training begins. The model runs on the
    fastest device and is moved back afterwards, because decompositions are reproducible to the byte only on one device.
    """
    section = plan.section
    if isinstance(section, LsrParams) and section.source:
        return of_adapter(section.source, base, plan, view, task)
    if not (isinstance(section, LsrParams) and section.reads_examples):
        return {}
    collate = task.head.collator(tokenizer_of(base, view.base_model))
    batches = _sample(train(), collate, section, view.seed)
    layers = {name: base.get_submodule(name) for name in plan.layers}
    model = cast("nn.Module", base)
    before = base.device
    device = fastest()
    try:
        model.to(device)
        with (
            as_user_error(ValueError, before=f"{PARAMS}: {section.key}.init: {view.data}: "),
            standardize_numbers(task, partial(last_layer_of_base, base)),
            share_rows(base, task, view.tenants.head, keep=section.init == "warm_start"),
        ):
            return read_examples(
                section.init,
                base,
                layers,
                _move_to_device(batches, device),
                [base.get_submodule(name) for name in plan.head],
                steps=section.init_head_steps,
                seed=view.seed,
                track=track,
            )
    finally:
        model.to(before)


def _sample(split: Dataset, collate: DataCollatorWithPadding, section: LsrParams, seed: int) -> list[Batch]:
    """Return the batches that an initialization reads: of gradients once, of a short LoRA run in each epoch."""
    if section.init not in SHORT_RUNS:
        return list(tokens.sample(split, collate, section.init_examples, seed, GRADIENT_BATCH))
    batches = list(tokens.sample(split, collate, section.init_examples, seed, SHORT_BATCH))
    epochs = section.init_epochs
    if epochs == "auto":
        is_whole = section.init_examples >= len(split)
        epochs = enough_epochs(SHORT_STEPS, len(batches)) if is_whole else 1
    return repeat(batches, epochs, seed)


def repeat(batches: Sequence[Batch], epochs: int, seed: int) -> list[Batch]:
    """Return the batches of each epoch; those after the first are in new orders."""
    draws = torch.Generator().manual_seed(seed)
    repeated = list(batches)
    for _ in range(1, epochs):
        order = torch.randperm(len(batches), generator=draws)
        repeated += [batches[place] for place in order.tolist()]
    return repeated


def _move_to_device(batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}


def of_adapter(
    source: str,
    base: PreTrainedModel,
    plan: Plan,
    view: FactorizeInitView,
    task: Task,
) -> dict[str, Matrix]:
    """Return another adapter's updates of the layers of a plan, and load its head into the base model.

    The head's outputs are reordered to the data's labels.

    Raises:
        UserError: if it is not an adapter, does not adapt the layers of the plan, or has a head for other labels.
    """
    where = f"{PARAMS}: {plan.section.key}.init"
    modules = dict(base.named_modules())
    with as_user_error(ValueError, TypeError, RuntimeError, before=f"{where}: "):
        files = read_files(adapter_folder(source))
        contents = read_contents(files)
        check_layers(contents.shapes, modules)
        heads = contents.head_tensors(modules, task.head.width(task.head.names))
        order = order_of_outputs(task, contents, view.data) if heads else None
        if order:
            _reorder_outputs(heads, last_layer(files), order)
        for name, state in heads.items():
            modules[name].load_state_dict(state)
    for name in sorted(contents.updates.keys() ^ set(plan.layers)):
        does = "adapts" if name in contents.updates else "does not adapt"
        raise UserError(f"{where}: {source} {does} {name!r}; target_modules must name the layers that it adapts")
    return {name: contents.updates[name].product() for name in plan.layers}


def _reorder_outputs(heads: Mapping[str, dict[str, Tensor]], layer: str, order: Sequence[int]) -> None:
    """Reorder the rows of a head's last layer in place."""
    by_label = (f"{layer}.weight", f"{layer}.bias")
    for name, state in heads.items():
        for key in state:
            if f"{name}.{key}" in by_label:
                state[key] = state[key][order]


def order_of_outputs(task: Task, contents: Contents, data: str) -> list[int] | None:
    """Return the indices of an adapter's outputs in the order of a task's labels; None if no file names them.

    Raises:
        ValueError: if its head has other labels; names them.
    """
    if contents.task is None:
        taken = f"its outputs are taken in the order of those of {data}"
        console.note(f"{contents.source}: no {TASK} names its labels: {taken}")
        return None
    held = outputs_of(contents.task)
    wanted = outputs_of(AdapterTask.of(task, max_length=1).model_dump())
    if sorted(held) != sorted(wanted):
        of_data = f"{data} has {some_of(wanted, SHOWN)}"
        raise ValueError(f"{contents.source}: its head is for {some_of(held, SHOWN)}, and {of_data}")
    return [held.index(output) for output in wanted]


def outputs_of(task_info: Mapping[str, Any]) -> list[str]:
    """Return the names of a head's outputs, in order, by its task info: labels, of tenants with their names."""
    tenants = task_info.get(TENANTS)
    if not tenants:
        return list(task_info.get("labels") or [NUMBER])
    outputs = list[str]()
    for tenant, labels in tenants.items():
        outputs += [f"{label} of {tenant}" for label in labels or [NUMBER]]
    return outputs
