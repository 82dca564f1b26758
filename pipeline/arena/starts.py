"""How a training starts: its plan, and what its initialization reads, gradients or the updates of a short training.

Many trainings read the same, which cost as much as a training, so it is cached in files for all processes and
later runs. It is drawn with its own seed, so that no training depends on earlier ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from pipeline import tasks
from pipeline.arena import record, task_tokens
from pipeline.arena.plan import Training
from pipeline.data import base_models
from pipeline.methods import adapters, planning
from pipeline.methods.planning import Plan
from pipeline.methods.statistics import of_adapter, of_examples
from pipeline.params import LsrParams

WHOLE, FIRST, SECOND, HEAD = "whole", "first", "second", "head"  # before the names of tensors in a file
SECONDS = "seconds"  # in its metadata: what it took


class Statistics(NamedTuple):
    """The gradients of a task, or the updates of a short training."""

    layers: Mapping[str, Matrix]  # (m, n) each, by layer
    head: Mapping[str, Tensor]  # the parameters of the head as trained, if the initialization goes on from there
    seconds: float  # that they took


NOTHING = Statistics({}, {}, 0.0)


def read(training: Training, plan: Plan) -> Statistics:
    """Return what the initialization of a training reads, cached if possible; NOTHING if it reads no examples."""
    section = plan.section
    if not (isinstance(section, LsrParams) and section.reads_examples):
        return NOTHING
    known = (task_tokens.known(training), section.examples, section.head_steps, training.seed, plan.layers)
    path = task_tokens.cached(section.init, known, lambda path: _write(path, training, plan, section))
    found: dict[str, dict[str, Tensor]] = {WHOLE: {}, FIRST: {}, SECOND: {}, HEAD: {}}
    with safe_open(path, "pt") as file:
        seconds = float(file.metadata()[SECONDS])
        for key in file.keys():  # noqa: SIM118 it is no mapping
            part, _, name = key.partition("/")
            found[part][name] = file.get_tensor(key)
    products = {name: (first, found[SECOND][name]) for name, first in found[FIRST].items()}
    return Statistics({**found[WHOLE], **products}, found[HEAD], seconds)


def _write(path: Path, training: Training, plan: Plan, section: LsrParams) -> None:
    begin, view = record.clock(), training.view
    set_seed(training.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    flat = dict[str, Tensor]()
    for name, matrix in of_examples(task_tokens.splits(training)["train"], base, plan, view).items():
        parts = {WHOLE: matrix} if isinstance(matrix, Tensor) else dict(zip((FIRST, SECOND), matrix, strict=True))
        flat |= {f"{part}/{name}": value.contiguous() for part, value in parts.items()}
    for head in plan.head if INITIALIZATIONS[section.init].goes_on else ():
        flat |= {f"{HEAD}/{head}.{name}": its for name, its in base.get_submodule(head).state_dict().items()}
    save_file(flat, path, {SECONDS: f"{record.clock() - begin:.2f}"})


def planned(training: Training) -> Plan:
    """Return what the section of a training makes of its base model."""
    view = training.view
    task_tokens.folder_of(training)  # which say who the tenants are
    base, task_type = base_models.outline(view.base_model, view.dataset), tasks.of(view.dataset).peft_task
    return planning.resolve(view.section, base, view.base_model, view.seed, task_type)


def started(training: Training, plan: Plan, read: Statistics) -> PeftModel:
    """Return the base model with its adapter, before training."""
    view = training.view
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, view.dataset)
    base.load_state_dict(read.head, strict=False)  # as trained, if the initialization goes on from it
    section, layers = view.section, read.layers
    if isinstance(section, LsrParams) and section.source:
        layers = of_adapter(section.source, base, plan, view)
    model = adapters.add_adapter(base, plan, layers)
    for _ in adapters.start(model, plan, layers):
        pass
    return model
