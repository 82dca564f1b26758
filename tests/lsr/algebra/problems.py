"""What the tests decompose and fit: factors and forms, always the same."""

import torch
from hypothesis import strategies as st

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import max_separation_rank
from tests.lsr.matrices import normal

SEEDS = st.integers(0, 999)
FORMS = {  # out, rank and in shape by the number of factors
    1: ((48,), (4,), (48,)),
    2: ((8, 6), (2, 2), (6, 8)),
}


def drawn(terms, row_shape, column_shape, seed=0):
    return [
        normal(terms, p, q, seed=seed + position)
        for position, (p, q) in enumerate(zip(row_shape, column_shape, strict=True))
    ]


def product(a, b):
    return kron_sum(*b) @ kron_sum(*a)


def difference(one, two):
    return float(torch.dist(one, two) / two.norm())


@st.composite
def forms(draw):
    """Out, rank and in shape of two factors, and a number of terms that they can use."""
    rank = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    out, in_ = (tuple(r * draw(st.integers(1, 3)) for r in rank) for _ in range(2))
    limit = min(max_separation_rank(rank, out), max_separation_rank(rank, in_))
    return out, rank, in_, draw(st.integers(1, limit))
