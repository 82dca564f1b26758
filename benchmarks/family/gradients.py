"""What frames are made of: the gradients of a data set, or the updates of a short training on it.

Many cells need the same, and to make them costs as much as to train: they lie in files, for all processes and runs.
What they draw has seeds of its own, so no cell depends on the cells before it.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from benchmarks.family import experiment, inputs
from benchmarks.family.experiment import Sizes
from benchmarks.family.methods import ALL_LINEAR
from lsr.algebra.spectrum import Matrix
from pipeline import artifacts, params
from pipeline.data import tokens
from pipeline.methods import adapters, base_models
from pipeline.methods.pooling import BATCH

FOLDER = Path(".cache/family")
KEPT = 8  # data sets by seed in memory: 42 MB each for MiniLM


class Reading(NamedTuple):
    """What determines the gradients or updates of all layers of a model."""

    init: str  # the initialization that reads them
    data: str
    model: str
    max_length: int
    sizes: Sizes
    examples: int
    head_steps: int
    seed: int


def gradients(reading: Reading, targets: tuple[str, ...]) -> Mapping[str, Matrix]:  # by layer name, of all indices
    """Return those of the layers whose names end so; the endings are of those of ALL_LINEAR."""
    return {name: value for name, value in _kept(reading).items() if name.endswith(_endings(targets))}


@lru_cache(KEPT)
def _kept(reading: Reading) -> Mapping[str, Matrix]:
    """Return those of all linear layers, for to make them takes about as long for some."""
    digest = hashlib.sha256(repr((experiment.VERSION, reading)).encode()).hexdigest()[:16]
    path = FOLDER / f"{digest}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with artifacts.replacing(path) as temporary:
                save_file(_flat(_made(reading)), temporary)
    return _nested(load_file(path))


def _made(reading: Reading) -> dict[str, Matrix]:
    set_seed(reading.seed)  # the head is drawn when the checkpoint loads
    row = params.load_row("model", reading.model)
    base = base_models.load_base_model(row, params.load_row("data", reading.data))
    names = [name for name, _ in base.named_modules() if name.endswith(_endings(ALL_LINEAR))]
    train = inputs.splits(reading.data, reading.model, reading.max_length, reading.sizes)["train"]
    tokenizer = base_models.load_tokenizer(row)
    batches = tokens.sample(train, tokenizer, reading.examples, reading.seed, BATCH[reading.init])
    return adapters.gradients(base, names, batches, row, reading.init, reading.head_steps, reading.seed)


def _flat(found: Mapping[str, Matrix]) -> dict[str, Tensor]:
    """Return what a file can hold: of a product, its two factors."""
    parts = {name: (value,) if isinstance(value, Tensor) else value for name, value in found.items()}
    return {f"{name}/{i}": part.contiguous() for name, all_of in parts.items() for i, part in enumerate(all_of)}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Matrix]:
    names = dict.fromkeys(key.partition("/")[0] for key in flat)
    factors = {name: (flat[f"{name}/0"], flat.get(f"{name}/1")) for name in names}
    return {name: one if two is None else (one, two) for name, (one, two) in factors.items()}


def _endings(targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{target}" for target in targets)
