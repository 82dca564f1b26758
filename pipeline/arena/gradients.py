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
from transformers import set_seed

from lsr.algebra.spectrum import Matrix
from pipeline import artifacts
from pipeline.arena import inputs
from pipeline.arena.inputs import CACHE, Task
from pipeline.data import tokens
from pipeline.methods import adapters, base_models
from pipeline.methods.pooling import BATCH


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


def gradients(reading: Reading) -> Mapping[str, Matrix]:  # by layer
    """Return the gradients or updates, (m, n) each, from the cache if possible.

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


def _made(reading: Reading) -> dict[str, Matrix]:
    task = reading.task
    set_seed(reading.seed)  # the head is drawn when the checkpoint loads
    base = base_models.load_base_model(task.model, task.row)
    tokenizer = base_models.load_tokenizer(task.model)
    train = inputs.splits(task)["train"]
    batches = list(tokens.sample(train, tokenizer, reading.examples, reading.seed, BATCH[reading.init]))
    layers: Sequence[str] = reading.layers
    return adapters.gradients(base, layers, batches, task.model, reading.init, reading.head_steps, reading.seed)


def _flat(found: Mapping[str, Matrix]) -> dict[str, Tensor]:
    """Return tensors for a file: both factors of a product."""
    parts = {name: (value,) if isinstance(value, Tensor) else value for name, value in found.items()}
    return {f"{name}/{i}": part.contiguous() for name, all_of in parts.items() for i, part in enumerate(all_of)}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Matrix]:
    names = dict.fromkeys(key.partition("/")[0] for key in flat)
    factors = {name: (flat[f"{name}/0"], flat.get(f"{name}/1")) for name in names}
    return {name: one if two is None else (one, two) for name, (one, two) in factors.items()}
