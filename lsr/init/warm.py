"""The update of a short training run, not only its directions: training goes on from where that run ended."""

from dataclasses import replace

import torch
from torch import Tensor

from lsr.algebra.frames import core_between, diagonal_between
from lsr.algebra.separable import pad_columns
from lsr.algebra.spectrum import Matrix, leading_svd
from lsr.init.initialization import Source, Start
from lsr.init.principal import fitted


def start(source: Source) -> Start:
    """Return the factors nearest to the update: min ||U - scaling * B A||_F.

    Raises:
        ValueError: if there is not exactly one update, or it is zero, not finite or too small.
    """
    form, update = source.form, _update(source)
    left, right = (update, None) if isinstance(update, Tensor) else update
    target = pad_columns(left.T, form.out_width).T
    padded = pad_columns(target, form.in_width) if right is None else (target, pad_columns(right, form.in_width))
    return replace(fitted(padded, source), rows=leading_svd(update, form.rank, source.seed)[2])


def core(
    source: Source,
    left: Tensor,  # B, (m, r)
    right: Tensor,  # A, (r, n)
) -> Tensor:  # (r, r), or (r,) if the directions are paired
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored.

    Raises:
        ValueError: if there is not exactly one update.
    """
    between = diagonal_between if source.paired else core_between
    return between(_update(source), left.double(), right.double()) / source.scaling


def _update(source: Source) -> Matrix:
    if not source.gradients:
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    if len(source.gradients) > 1:
        raise ValueError(f"a warm start goes on from one short training run, got {len(source.gradients)}")
    update = source.gradients[0]
    dense = (update,) if isinstance(update, Tensor) else update
    if not all(torch.isfinite(part).all() for part in dense):
        raise ValueError("the update is not finite")
    found = tuple(part.detach().to("cpu", torch.float64) for part in dense)
    return found[0] if len(found) == 1 else (found[0], found[1])
