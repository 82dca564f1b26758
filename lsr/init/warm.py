"""The update of a short training run, not only its directions: training goes on from where that run ended."""

from torch import Tensor

from lsr.algebra.frames import core_between, diagonal_between
from lsr.init.gradient import check_reached, only_matrix
from lsr.init.initialization import Source, Start
from lsr.init.principal import fitted


def start(source: Source) -> Start:
    """Return the factors nearest to the update: min ||U - scaling * B A||_F.

    Raises:
        ValueError: if there is not exactly one update, or it is zero, not finite or too small.
    """
    check_reached([source])
    return fitted(only_matrix(source), source)


def core(
    source: Source,
    left: Tensor,  # B, (m, r)
    right: Tensor,  # A, (r, n)
) -> Tensor:  # (r, r), or (r,) if the directions are paired
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored.

    Raises:
        ValueError: if there are several updates.
    """
    between = diagonal_between if source.paired else core_between
    return between(only_matrix(source), left.double(), right.double()) / source.scaling
