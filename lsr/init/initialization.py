"""What every initialization reads of a layer, and what it returns: the interface of the files beside this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix


@dataclass(frozen=True)
class Source:
    """What an initialization may read; the same source gives the same bytes."""

    form: Form
    weight: Callable[[], Tensor]  # (m, n): called by those that read it alone, for some weights are dequantized first
    scaling: float = 1.0
    seed: int = 0  # of randomized decompositions
    generator: torch.Generator | None = None  # of what is drawn; None: torch's global one
    # What examples say of W, (m, n), one of each data set: the mean of dL/dW, or the update of a short training.
    gradients: Sequence[Matrix] = ()
    zero: bool = True  # B1 = 0 where B is drawn
    paired: bool = False  # whether frames are for a diagonal core: the i-th direction of B goes with the i-th of A


@dataclass(frozen=True)
class Start:
    """Factors to start from."""

    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each
    error: float | None = None  # relative distance of the fit to its target; None where nothing was fitted
    rows: Tensor | None = None  # (r, n), orthonormal: the row space aimed at, where it is not the weight's leading one


class Initialization(NamedTuple):
    """A way to start.

    `start` makes factors that train: B A = 0, or, where it `folds`, an update that is subtracted from the base weight.
    `frames` makes those around a core, for one layer or for all that share them; None where it has no such meaning.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    start: Callable[[Source], Start]
    folds: bool = False
    frames: Callable[[Sequence[Source]], Start] | None = None
