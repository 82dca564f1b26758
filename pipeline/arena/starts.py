"""How a training starts: its plan, and what its initialization reads, gradients or the updates of a short training.

Many trainings read the same, which cost as much as a training, so it is cached in files for all processes and
later runs. It is drawn with its own seed, so that no training depends on earlier ones.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from peft import PeftModel
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
    known = task_tokens.known(training), section.init, section.examples, section.head_steps, training.seed, plan.layers
    path = task_tokens.cached("start", known, lambda path: torch.save(tuple(_computed(training, plan, section)), path))
    return Statistics(*torch.load(path, weights_only=True))


def _computed(training: Training, plan: Plan, section: LsrParams) -> Statistics:
    begin, view = record.clock(), training.view
    set_seed(training.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    layers = of_examples(task_tokens.splits(training)["train"], base, plan, view)
    heads = plan.head if INITIALIZATIONS[section.init].goes_on else ()
    states = {head: base.get_submodule(head).state_dict() for head in heads}
    head = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    return Statistics(layers, head, record.clock() - begin)


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
