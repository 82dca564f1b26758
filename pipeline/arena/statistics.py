"""What initializations read of a task: its gradients, or the updates of a short training on it, computed once.

Many trainings need the same ones, which cost as much as a training, so they are cached in files for all processes and
later runs. They are drawn with their own seeds, so that no training depends on earlier ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from pipeline import tasks
from pipeline.arena import record, task_tokens
from pipeline.arena.plan import Training
from pipeline.data import base_models, tokens
from pipeline.methods.planning import Plan
from pipeline.methods.statistics import BATCH, over_batches
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
    with safe_open(path, "pt") as file:
        seconds = float(file.metadata()[SECONDS])
    found: dict[str, dict[str, Tensor]] = {WHOLE: {}, FIRST: {}, SECOND: {}, HEAD: {}}
    for key, value in load_file(path).items():
        part, _, name = key.partition("/")
        found[part][name] = value
    products = {name: (first, found[SECOND][name]) for name, first in found[FIRST].items()}
    return Statistics({**found[WHOLE], **products}, found[HEAD], seconds)


def _write(path: Path, training: Training, plan: Plan, section: LsrParams) -> None:
    begin, view = record.clock(), training.view
    set_seed(training.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(view.base_model, view.dataset)
    collate = tasks.of(view.dataset).collator(base_models.load_tokenizer(view.base_model))
    train = task_tokens.splits(training)["train"]
    batches = list(tokens.sample(train, collate, section.examples, training.seed, BATCH[section.init]))
    flat: dict[str, Tensor] = {}
    for name, matrix in over_batches(base, plan, batches, training.seed).items():
        parts = {WHOLE: matrix} if isinstance(matrix, Tensor) else dict(zip((FIRST, SECOND), matrix, strict=True))
        flat |= {f"{part}/{name}": value.contiguous() for part, value in parts.items()}
    for head in plan.head if INITIALIZATIONS[section.init].goes_on else ():
        state = base.get_submodule(head).state_dict()
        flat |= {f"{HEAD}/{head}.{name}": value.contiguous() for name, value in state.items()}
    save_file(flat, path, {SECONDS: f"{record.clock() - begin:.2f}"})
