"""What initializations read of a task: its gradients, or the updates of a short training on it, computed once.

Many trainings need the same ones, which cost as much as a training, so they are cached in files for all processes and
later runs. They are drawn with their own seeds, so that no training depends on earlier ones.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from pipeline import tasks
from pipeline.arena import machine, task_tokens
from pipeline.arena.task_tokens import CACHE, Task
from pipeline.core import artifacts
from pipeline.data import base_models, tokens
from pipeline.methods.planning import Plan
from pipeline.methods.statistics import BATCH, over_batches
from pipeline.params import LsrParams

HEAD = "head"  # suffix of its parameters in a file
SECONDS = "seconds"  # in its metadata: what it took


class Statistics(NamedTuple):
    """The gradients of a task, or the updates of a short training."""

    layers: Mapping[str, Matrix]  # (m, n) each, by layer
    head: Mapping[str, Tensor]  # the parameters of the head as trained, if the initialization goes on from there
    spared: float = 0.0  # seconds that the cache has spared


class Reading(NamedTuple):
    """What determines the gradients or updates of the layers of a plan."""

    task: Task
    plan: Plan
    section: LsrParams  # of the plan
    seed: int

    def digest(self) -> str:
        """Return a hash of all that counts, 16 hexadecimal digits."""
        section = self.section
        known = (section.init, self.task.digest(), section.examples, section.head_steps, self.seed, self.plan.layers)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def read(reading: Reading) -> Statistics:
    """Return the gradients or updates, (m, n) each, and the head, from the cache if possible.

    Raises:
        UserError: if the examples or the head fitted to them are not suitable.
    """
    path = CACHE / f"{reading.section.init}-{reading.digest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            with safe_open(path, "pt") as file:
                spared = float(file.metadata()[SECONDS])
            return _nested(load_file(path))._replace(spared=spared)
        begin = machine.clock()
        computed = _computed(reading)
        spent = machine.clock() - begin
        with artifacts.replacing(path) as temporary:
            save_file(_flat(computed), temporary, {SECONDS: f"{spent:.2f}"})
    return computed


def _computed(reading: Reading) -> Statistics:
    task, section, plan = reading.task, reading.section, reading.plan
    set_seed(reading.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(task.model, task.row)
    collate = tasks.of(task.row).collator(base_models.load_tokenizer(task.model))
    train = task_tokens.splits(task)["train"]
    batches = list(tokens.sample(train, collate, section.examples, reading.seed, BATCH[section.init]))
    layers = over_batches(base, plan, batches, reading.seed)
    heads = plan.head if INITIALIZATIONS[section.init].goes_on else ()
    trained = {
        f"{head}.{name}": value for head in heads for name, value in base.get_submodule(head).state_dict().items()
    }
    return Statistics(layers, trained)


def _flat(found: Statistics) -> dict[str, Tensor]:
    """Return tensors for a file: both factors of a product, and the head."""
    parts = {name: (value,) if isinstance(value, Tensor) else value for name, value in found.layers.items()}
    flat = {f"{name}/{i}": part.contiguous() for name, all_of in parts.items() for i, part in enumerate(all_of)}
    return flat | {f"{name}/{HEAD}": value.contiguous() for name, value in found.head.items()}


def _nested(flat: Mapping[str, Tensor]) -> Statistics:
    split = {key: key.rpartition("/") for key in flat}
    names = dict.fromkeys(name for name, _, part in split.values() if part != HEAD)
    factors = {name: (flat[f"{name}/0"], flat.get(f"{name}/1")) for name in names}
    return Statistics(
        {name: one if two is None else (one, two) for name, (one, two) in factors.items()},
        {name: flat[key] for key, (name, _, part) in split.items() if part == HEAD},
    )
