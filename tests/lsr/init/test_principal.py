"""The start from the weight: TensorLy's decomposition of its leading singular vectors."""

from unittest.mock import patch

import torch
from torch.testing import assert_close

from lsr.algebra import separable, spectrum
from lsr.algebra.separable import kron_sum
from lsr.init import principal
from tests.lsr.init.forms import source_of
from tests.lsr.matrices import decaying


def test_tensorly_decomposes_the_weight_and_both_sides_of_it():
    with (
        patch.object(spectrum, "svd_interface", wraps=spectrum.svd_interface) as of_the_weight,
        patch.object(separable, "svd_interface", wraps=separable.svd_interface) as of_a_side,
    ):
        principal.start(source_of(decaying(24, 24), (2, 2), 2))
    assert of_the_weight.call_count == 1
    assert of_a_side.call_count == 2


def test_the_rows_of_a_come_nearer_to_the_leading_singular_vectors_with_each_term():
    weight, held = decaying(24, 26), []  # 26 is padded
    vectors = torch.linalg.svd(weight).Vh[:4].T
    for terms in (1, 2, 4, 8):
        rows = kron_sum(*principal.start(source_of(weight, (2, 2), terms, in_shape=(7, 4))).a)[:, :26]
        held.append(float((torch.linalg.qr(rows.T).Q.T @ vectors).square().sum()) / 4)
    assert held == sorted(held)
    assert_close(held[-1], 1.0, atol=1e-9, rtol=0)
