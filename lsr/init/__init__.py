"""Initialization of the factors, and the statistics of training examples that some initializations need.

Everything runs in float64, one layer at a time, or one group of layers that share factors. A fresh adapter leaves the
model unchanged, because B1 or the core is zero. Only `warm_start` begins with an update, the one of a short LoRA run.
"""

from lsr.init.initialization import INITIALIZATIONS, read_examples

__all__ = ["INITIALIZATIONS", "read_examples"]
