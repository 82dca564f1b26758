"""The initializations by name: the matrix that each reads, and its functions for factors, bases and cores.

The matrix is the weight, or a statistic of examples: the loss gradient, or the update of a short LoRA run, which
accumulates gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lsr.init.context import InitContext, InitialFactors, Matrices
from lsr.init.directions import singular_bases, singular_factors
from lsr.init.examples import examples_gradients, examples_updates
from lsr.init.random_factors import fresh_core, random_bases, random_factors
from lsr.init.warm import warm_core, warm_factors


class Initialization(NamedTuple):
    """An initialization scheme.

    `factors` returns trainable factors with B A = 0, and `bases` the bases around a core, for one layer or for all
    layers that share them. `read` computes an (m, n) matrix per layer from examples.

    `core` returns the core between a layer's bases: zero, except in a warm start, which continues from the short LoRA
    run: then the head stays trained, and `factors` and `core` return the nearest approximation of its update.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    factors: Callable[[InitContext], InitialFactors]
    bases: Callable[[Sequence[InitContext]], InitialFactors]
    core: Callable[[InitContext, Tensor, Tensor], Tensor] = fresh_core  # makes the core for B (m, r) and A (r, n)
    read: Callable[..., Matrices] | None = None


INITIALIZATIONS = {
    "random": Initialization("seed", random_factors, random_bases),
    "principal": Initialization("weight", singular_factors, singular_bases),
    "gradient": Initialization("gradient", singular_factors, singular_bases, read=examples_gradients),
    "lora_update": Initialization("update", singular_factors, singular_bases, read=examples_updates),
    "warm_start": Initialization(
        "update", warm_factors, singular_bases, warm_core, read=partial(examples_updates, keep_head=True)
    ),
}


def read_examples(name: str, *arguments: Any, **options: Any) -> Matrices:
    """Return the statistic that an initialization reads of examples, given the arguments of `examples_gradients`.

    Raises:
        ValueError: as `examples_gradients`; or if the initialization reads no examples.
    """
    read = INITIALIZATIONS[name].read
    if read is None:
        names = " or ".join(repr(known) for known, scheme in INITIALIZATIONS.items() if scheme.read)
        raise ValueError(f"init_weights must be {names} to initialize from examples, got {name!r}")
    return read(*arguments, **options)
