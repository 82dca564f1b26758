"""How factors start: one initialization a file, what examples say about a layer, and what a start holds.

All of it runs in float64 and a layer at a time, or a kind of layers that share their factors. A fresh adapter leaves
the model unchanged: B1 = 0, or the core is, or, where an initialization folds, what it starts at is subtracted from the
base weight.
"""

from collections.abc import Callable, Mapping

from lsr.algebra.spectrum import Matrix
from lsr.init import cp, frames, gradient, minor, principal, random, row_space
from lsr.init.head import examples_gradients
from lsr.init.initialization import Initialization
from lsr.init.update import examples_updates

INITIALIZATIONS = {
    "random": Initialization("seed", random.start, frames=frames.random_frames),
    "row_space": Initialization("weight", row_space.start),
    "principal": Initialization("weight", principal.start, folds=True, frames=principal.frames),
    "minor": Initialization("weight", minor.start, folds=True, frames=minor.frames),
    "cp": Initialization("weight", cp.start, folds=True),
    "gradient": Initialization("gradient", gradient.start, frames=gradient.frames),
    "update": Initialization("update", gradient.start, frames=gradient.frames),  # in place of the gradient
}

# What reads examples, by what initializations call it.
READERS: Mapping[str, Callable[..., dict[str, Matrix]]] = {"gradient": examples_gradients, "update": examples_updates}
