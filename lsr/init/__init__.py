"""How factors start: one initialization a file, what examples say about a layer, and what a start holds.

All of it runs in float64 and a layer at a time. A fresh adapter leaves the model unchanged: B1 = 0, or, where an
initialization folds, what it starts at is subtracted from the base weight.
"""

from lsr.init import cp, gradient, minor, principal, random, row_space
from lsr.init.initialization import Initialization

INITIALIZATIONS = {
    "random": Initialization("seed", random.start),
    "row_space": Initialization("weight", row_space.start),
    "principal": Initialization("weight", principal.start, folds=True),
    "minor": Initialization("weight", minor.start, folds=True),
    "cp": Initialization("weight", cp.start, folds=True),
    "gradient": Initialization("gradient", gradient.start),
}
