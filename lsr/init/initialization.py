"""The initializations by name: what they read of a layer, and the functions that return factors, bases and cores.

The matrix that they read is the weight, or a statistic of examples: the loss gradient, or in its place the update of a
short training run, which accumulates gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lsr.init.directions import singular_frames, singular_start
from lsr.init.examples import examples_gradients, examples_updates
from lsr.init.random_factors import fresh_core, random_frames, random_start
from lsr.init.source import Matrices, Source, Start
from lsr.init.warm import warm_core, warm_start


class Initialization(NamedTuple):
    """An initialization scheme.

    `start` returns trainable factors with B A = 0, and `frames` the frames around a core, for one layer or for all that
    share them. `read` gathers what is read of examples, as an (m, n) matrix for each layer.

    `core` returns the core between the frames of a layer: zero, unless the scheme goes on from the short training run
    whose update it reads. Then the head stays as trained, and `start` and `core` return the nearest to the update.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    start: Callable[[Source], Start]
    frames: Callable[[Sequence[Source]], Start]
    core: Callable[[Source, Tensor, Tensor], Tensor] = fresh_core  # makes the core for B (m, r) and A (r, n)
    read: Callable[..., Matrices] | None = None


INITIALIZATIONS = {
    "random": Initialization("seed", random_start, random_frames),
    "principal": Initialization("weight", singular_start, singular_frames),
    "gradient": Initialization("gradient", singular_start, singular_frames, read=examples_gradients),
    "update": Initialization("update", singular_start, singular_frames, read=examples_updates),
    "warm_start": Initialization(
        "update", warm_start, singular_frames, warm_core, read=partial(examples_updates, keep_head=True)
    ),
}


def read_examples(word: str, *arguments: Any, **options: Any) -> Matrices:
    """Return what the initialization of this name reads of examples, given the arguments of `examples_gradients`.

    Raises:
        ValueError: as that; or if the initialization reads no examples.
    """
    read = INITIALIZATIONS[word].read
    if read is None:
        words = " or ".join(repr(name) for name, scheme in INITIALIZATIONS.items() if scheme.read)
        raise ValueError(f"init_weights must be {words} to start from examples, got {word!r}")
    return read(*arguments, **options)
