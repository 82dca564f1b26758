"""Inputs of frames: the gradients of a task, or the updates of a short training on it, computed once for all methods.

Many trainings need the same ones, which cost as much as a training, so they are cached in files for all processes and
runs. They are drawn with their own seeds, so that no training depends on earlier ones.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from pipeline.arena import inputs
from pipeline.arena.inputs import CACHE, Task
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.methods import adapters, architecture, base_models
from pipeline.methods.pooling import BATCH

HEAD = "head"  # suffix of its parameters in a file


class Found(NamedTuple):
    """What is read for frames."""

    gradients: Mapping[str, Matrix]  # or updates, by layer
    head: Mapping[str, Tensor]  # the parameters of the head as trained, if the initialization goes on from there


class Reading(NamedTuple):
    """What determines the gradients or updates of some layers of a model."""

    init: str  # the initialization that uses them
    task: Task
    examples: int
    head_steps: int
    seed: int
    layers: tuple[str, ...]

    def digest(self) -> str:
        """Return a hash of all fields, 16 hexadecimal digits."""
        known = (self.init, self.task.digest(), self.examples, self.head_steps, self.seed, self.layers)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def gradients(reading: Reading) -> Found:
    """Return the gradients or updates, (m, n) each, and the head, from the cache if possible.

    Raises:
        UserError: if the examples or the head fitted to them are not suitable.
    """
    path = CACHE / f"{reading.init}-{reading.digest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with artifacts.replacing(path) as temporary:
                save_file(_flat(_made(reading)), temporary)
    return _nested(load_file(path))


def with_heads(base: PreTrainedModel, found: Sequence[Found]) -> list[Mapping[str, Matrix]]:
    """Return the gradients or updates; a base model gets the head as trained, if the initialization goes on from it."""
    for one in found:
        base.load_state_dict(one.head, strict=False)
    return [one.gradients for one in found]


def _made(reading: Reading) -> Found:
    task = reading.task
    set_seed(reading.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(task.model, task.row)
    tokenizer = base_models.load_tokenizer(task.model)
    train = inputs.splits(task)["train"]
    batches = list(tokens.sample(train, tokenizer, reading.examples, reading.seed, BATCH[reading.init]))
    layers: Sequence[str] = reading.layers
    found = adapters.gradients(base, layers, batches, task.model, reading.init, reading.head_steps, reading.seed)
    heads = architecture.head_of(task.model, base) if INITIALIZATIONS[reading.init].goes_on else ()
    trained = {
        f"{head}.{name}": value for head in heads for name, value in base.get_submodule(head).state_dict().items()
    }
    return Found(found, trained)


def _flat(found: Found) -> dict[str, Tensor]:
    """Return tensors for a file: both factors of a product, and the head."""
    parts = {name: (value,) if isinstance(value, Tensor) else value for name, value in found.gradients.items()}
    read = {f"{name}/{i}": part.contiguous() for name, all_of in parts.items() for i, part in enumerate(all_of)}
    return read | {f"{name}/{HEAD}": value.contiguous() for name, value in found.head.items()}


def _nested(flat: Mapping[str, Tensor]) -> Found:
    split = {key: key.rpartition("/") for key in flat}
    names = dict.fromkeys(name for name, _, part in split.values() if part != HEAD)
    factors = {name: (flat[f"{name}/0"], flat.get(f"{name}/1")) for name in names}
    return Found(
        {name: one if two is None else (one, two) for name, (one, two) in factors.items()},
        {name: flat[key] for key, (name, _, part) in split.items() if part == HEAD},
    )
