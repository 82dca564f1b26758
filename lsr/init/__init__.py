"""Initialization of the factors: one scheme per file, statistics gathered from examples, and quality measures.

Everything runs in float64, one layer at a time, or one group of layers that share factors. A fresh adapter leaves the
model unchanged: B1 or the core is zero, or the initial update is subtracted from the base weight (schemes that fold).
Only `warm` begins with an update, that of a short training run.
"""

from collections.abc import Callable, Mapping

from lsr.algebra.spectrum import Matrix
from lsr.init import cp, frames, gradient, minor, principal, random, row_space, warm
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
    "warm": Initialization("update", warm.start, frames=gradient.frames, core=warm.core),
}

# What gathers statistics from examples, by the name that an initialization asks for.
READERS: Mapping[str, Callable[..., dict[str, Matrix]]] = {"gradient": examples_gradients, "update": examples_updates}
