"""What every decomposition rests on: a singular value decomposition that converges whatever the BLAS."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import nearest_kron_sum
from lsr.algebra.spectrum import leading_svd
from tests.lsr.matrices import normal


@pytest.fixture
def gives_up(monkeypatch):
    """NumPy and torch as with OpenBLAS on some AMD processors: their driver does not converge for a finite matrix."""

    def numpy_svd(*args, **kwargs):
        raise np.linalg.LinAlgError("SVD did not converge")

    def torch_svd(*args, **kwargs):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    def start():
        monkeypatch.setattr(np.linalg, "svd", numpy_svd)
        monkeypatch.setattr(torch.linalg, "svd", torch_svd)

    return start


@pytest.mark.parametrize(
    "decompose",
    [
        lambda: leading_svd(normal(9, 6), 3),
        lambda: leading_svd((normal(9, 3), normal(3, 6)), 2),
        lambda: leading_frames([normal(9, 6, seed=seed) for seed in range(3)], 2),
        lambda: leading_frames([(normal(9, 2, seed=seed), normal(2, 6, seed=9 + seed)) for seed in range(3)], 4),
        lambda: paired_frames([normal(9, 6, seed=seed) for seed in range(3)], 2),
        lambda: nearest_kron_sum(normal(6, 6), (2, 3), (3, 2), 2),
    ],
)
def test_decompositions_are_the_same_with_the_other_driver(decompose, gives_up):
    before = decompose()
    gives_up()
    assert_close(decompose(), before)
