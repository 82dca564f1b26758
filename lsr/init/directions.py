"""A and B's frame from the leading singular vectors of a statistic of examples; B1, or the core between them, is zero.

It is the loss gradient, or in its place the update of a short training run, which accumulates gradients.
"""

from collections.abc import Sequence
from math import isfinite

from lsr.algebra.spectrum import Matrix, norm_of
from lsr.init.initialization import Source, Start
from lsr.init.principal import directed, framed


def start(source: Source) -> Start:
    """Take the directions of A and B's frame from the gradient; their scale is LoRA's.

    With B1 = 0 the first step moves B along the gradient times A^T. Its gain is the energy of the gradient in the rows
    of A.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    return directed(matrices_of([source])[0], source)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the gradient, or joint ones over several layers.

    Only the directions are kept: frames scaled by the singular values learned less.

    Raises:
        ValueError: if there is no gradient, or it is zero, not finite or too small.

    Reference: LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557), which takes the first full gradient.
    """
    return framed(matrices_of(sources), sources[0])


def matrices_of(sources: Sequence[Source]) -> list[Matrix]:
    """Return the gradients or updates of sources.

    Raises:
        ValueError: if there are none, or of zeros alone, or one is not finite; names the ways out.
    """
    matrices = [source.statistic for source in sources if source.statistic is not None]
    if len(matrices) < len(sources):
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    if not isfinite(norm := sum(map(norm_of, matrices))):
        raise ValueError("the gradient or update over the examples is not finite")
    if not norm:
        raise ValueError(
            "no gradient of the loss over the examples reaches it, so they show it no direction; initialize it as "
            "'random' or 'principal', which read no examples, or leave it out of target_modules"
        )
    return matrices
