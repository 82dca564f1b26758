"""A and B fitted jointly to the trailing singular part of the weight. The initial update is folded."""

from collections.abc import Sequence
from dataclasses import replace

from lsr.algebra.frames import trailing_frames
from lsr.algebra.separable import pad_columns
from lsr.algebra.spectrum import trailing_part
from lsr.init.frames import as_factors
from lsr.init.initialization import Source, Start
from lsr.init.principal import fitted


def start(source: Source) -> Start:
    """Return the factors nearest to the part of the weight that belongs to its r smallest singular values.

    Raises:
        ValueError: if the weight is zero, not finite or too small.

    Reference: MiLoRA (Wang et al. 2024, arXiv 2406.09044).
    """
    form = source.form
    left, right = trailing_part(source.weight(), form.rank)
    pair = pad_columns(left.T, form.out_width).T, pad_columns(right, form.in_width)
    return replace(fitted(pair, source), rows=right)


def frames(sources: Sequence[Source]) -> Start:
    """Return the trailing singular vectors of the weight, or joint ones over several weights.

    Raises:
        ValueError: as `start`.
    """
    first = sources[0]
    return as_factors(
        *trailing_frames([source.weight() for source in sources], first.form.rank), first.form, first.seed
    )
