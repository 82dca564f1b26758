"""A and B's frame from the leading singular vectors of the loss gradient; B1, or the core between frames, is zero.

The update of a short training run takes the place of the gradient in the same way: it accumulates gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsr.algebra.spectrum import Matrix, norm_of
from lsr.init.initialization import Source, Start
from lsr.init.principal import directed, framed


def start(source: Source) -> Start:
    """Take the directions of A and B's frame from the gradient, joint ones of several data sets; their scale is LoRA's.

    With B1 = 0 the first step moves B along the gradient times A^T. Its gain is the energy of the gradient in the rows
    of A.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    check_reached([source])
    return directed(source.gradients, source)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the gradient, or joint ones over several layers and data sets.

    Only the directions are kept: frames scaled by the singular values learned less.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557), which takes the first full gradient.
    """
    check_reached(sources)
    return framed([matrix for source in sources for matrix in source.gradients], sources[0])


def only_matrix(source: Source) -> Matrix:
    """Return the gradient or update that a source has, in float64 on the CPU.

    Raises:
        ValueError: if there are several, or it is not finite.
    """
    if len(source.gradients) > 1:
        raise ValueError(f"a warm start goes on from one short training run, got {len(source.gradients)}")
    matrix = source.gradients[0]
    parts = [part.detach().to("cpu", torch.float64) for part in ((matrix,) if isinstance(matrix, Tensor) else matrix)]
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("the gradient or update is not finite")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def check_reached(sources: Sequence[Source]) -> None:
    """Check that there are gradients or updates, and not of zeros alone.

    Raises:
        ValueError: if not; names the ways out.
    """
    if not all(source.gradients for source in sources):
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    if not any(norm_of(matrix) for source in sources for matrix in source.gradients):
        raise ValueError(
            "no gradient of the loss over the examples reaches it, so they show it no direction; initialize it as "
            "'random' or 'principal', which read no examples, or leave it out of target_modules"
        )
