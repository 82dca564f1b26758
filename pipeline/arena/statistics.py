"""What initializations read of a task: its gradients, or the updates of a short training on it, computed once.

Many trainings need the same ones, which cost as much as a training, so they are cached in files for all processes and
later runs. They are drawn with their own seeds, so that no training depends on earlier ones.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from pipeline.arena import record, task_tokens
from pipeline.arena.plan import Training
from pipeline.data import base_models
from pipeline.methods.planning import Plan
from pipeline.methods.statistics import of_examples
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
