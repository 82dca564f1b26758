"""Initialization of the factors, and the statistics that some forms of it gather from examples.

Everything runs in float64, one layer at a time, or one group of layers that share factors. A fresh adapter leaves the
model unchanged, because B1 or the core is zero. Only `warm` begins with an update, that of a short training run.
"""

from collections.abc import Callable, Mapping

from lsr.algebra.spectrum import Matrix
from lsr.init.examples import examples_gradients, examples_updates
from lsr.init.initialization import INITIALIZATIONS as INITIALIZATIONS

# What gathers statistics from examples, by the name that an initialization asks for.
READERS: Mapping[str, Callable[..., dict[str, Matrix]]] = {"gradient": examples_gradients, "update": examples_updates}
