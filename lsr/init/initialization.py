"""The initializations by name: the matrix that each reads, and its functions for factors, bases and cores.

The matrix is the weight, or a statistic of examples: the loss gradient, or the update of a short LoRA run, which
accumulates gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lsr.init.directions import singular_bases, singular_start
from lsr.init.examples import examples_gradients, examples_updates
from lsr.init.random_factors import fresh_core, random_bases, random_start
from lsr.init.source import Matrices, Source, Start
from lsr.init.warm import warm_core, warm_start


class Initialization(NamedTuple):
    """An initialization scheme.

    `start` returns trainable factors with B A = 0, and `bases` the bases around a core, for one layer or for all
    layers that share them. `read` computes an (m, n) matrix per layer from examples.

    `core` returns the core between a layer's bases: zero, except in a warm start, which continues from the short LoRA
    run: then the head stays trained, and `start` and `core` return the nearest approximation of its update.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    start: Callable[[Source], Start]
    bases: Callable[[Sequence[Source]], Start]
    core: Callable[[Source, Tensor, Tensor], Tensor] = fresh_core  # makes the core for B (m, r) and A (r, n)
    read: Callable[..., Matrices] | None = None


INITIALIZATIONS = {
    "random": Initialization("seed", random_start, random_bases),
    "principal": Initialization("weight", singular_start, singular_bases),
    "gradient": Initialization("gradient", singular_start, singular_bases, read=examples_gradients),
    "update": Initialization("update", singular_start, singular_bases, read=examples_updates),
    "warm_start": Initialization(
        "update", warm_start, singular_bases, warm_core, read=partial(examples_updates, keep_head=True)
    ),
}


def read_examples(word: str, *arguments: Any, **options: Any) -> Matrices:
    """Return the statistic that an initialization reads of examples, given the arguments of `examples_gradients`.

    Raises:
        ValueError: as `examples_gradients`; or if the initialization reads no examples.
    """
    read = INITIALIZATIONS[word].read
    if read is None:
        words = " or ".join(repr(name) for name, scheme in INITIALIZATIONS.items() if scheme.read)
        raise ValueError(f"init_weights must be {words} to initialize from examples, got {word!r}")
    return read(*arguments, **options)
