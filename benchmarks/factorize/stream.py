"""Initialize the layers of a large model, read from its shards one weight at a time; none stays in memory."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.factorize.cases import Case, decaying_weight
from benchmarks.processes import peak_memory
from pipeline.core import console
from pipeline.core.errors import UserError

SIZE = 4096  # q and v of a model of 7 B parameters, in each of 32 layers
STARTS = ("principal",)
RANK_SHAPE, SEPARATION_RANK = (4, 4), 16
PROJECTIONS = ("q_proj", "v_proj")
LAYERS_A_SHARD = 4


class Pass(NamedTuple):
    """The cost of initializing a number of layers, including reading them."""

    start: str
    layers: int
    seconds: float
    peak: int  # bytes of the whole process

    @property
    def seconds_a_layer(self) -> float:
        """Seconds for the weights of one layer."""
        return self.seconds / self.layers


def check_space(folder: Path, layers: int, size: int) -> None:
    """Check that the shards fit into a folder.

    Raises:
        UserError: if they do not.
    """
    needed, free = layers * len(PROJECTIONS) * size**2 * torch.bfloat16.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {layers} layers need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            "choose fewer with --layers, or another folder with TMPDIR"
        )


def write_shards(folder: Path, layers: int, size: int) -> None:
    """Write the weights of this number of layers, all different, in bfloat16."""
    shards = [range(layers)[first : first + LAYERS_A_SHARD] for first in range(0, layers, LAYERS_A_SHARD)]
    for number, held in enumerate(console.track(shards, "write weights", len(shards), "shards"), start=1):
        weights = {
            f"model.layers.{layer}.self_attn.{name}.weight": decaying_weight(
                size, seed=layer * len(PROJECTIONS) + position
            ).bfloat16()
            for layer in held
            for position, name in enumerate(PROJECTIONS)
        }
        save_file(weights, folder / f"model-{number:05}-of-{len(shards):05}.safetensors")


def read_weights(folder: Path) -> Iterator[Tensor]:
    """Yield the weights of a folder's shards one by one."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            names = shard.keys()
        for name in names:
            with safe_open(path, "pt") as shard:  # reopened, because an open shard keeps its pages in memory
                yield shard.get_tensor(name)


def start_layers(folder: Path, layers: int, start: str) -> Pass:
    """Initialize the first layers of a folder, keeping none. It must be the first task of its process."""
    weights = islice(read_weights(folder), layers * len(PROJECTIONS))
    before = perf_counter()
    for weight in console.track(weights, f"{start}, {layers} layers", layers * len(PROJECTIONS), "weights"):
        Case(start, len(weight), RANK_SHAPE, SEPARATION_RANK).run(weight)
    return Pass(start, layers, perf_counter() - before, peak_memory())
