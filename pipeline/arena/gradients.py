"""What frames are made of: the gradients of a task, or the updates of a short training on it, made once for all forms.

Many trainings need the same, and to make them costs as much as to train: they lie in files, for all processes and runs.
What they draw has seeds of its own, so no training depends on those before it.
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

    init: str  # the initialization that reads them
    task: Task
    examples: int
    head_steps: int
    seed: int
    layers: tuple[str, ...]

    def digest(self) -> str:
        """Return 16 hexadecimal digits that stand for all of it."""
        known = (self.init, self.task.digest(), self.examples, self.head_steps, self.seed, self.layers)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def gradients(reading: Reading) -> Mapping[str, Matrix]:  # by layer
    """Return them, from their file if they have been made before.

    Raises:
        UserError: if examples or their head do not allow it.
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
    """Return what a file can hold: of a product, its two factors."""
    parts = {name: (value,) if isinstance(value, Tensor) else value for name, value in found.items()}
    return {f"{name}/{i}": part.contiguous() for name, all_of in parts.items() for i, part in enumerate(all_of)}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Matrix]:
    names = dict.fromkeys(key.partition("/")[0] for key in flat)
    factors = {name: (flat[f"{name}/0"], flat.get(f"{name}/1")) for name in names}
    return {name: one if two is None else (one, two) for name, (one, two) in factors.items()}
