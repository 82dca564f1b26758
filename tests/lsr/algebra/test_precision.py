import pytest
import torch

from lsr.algebra.precision import update_condition_number
from lsr.algebra.separable import kron_sum
from tests.lsr.matrices import normal


def test_a_single_term_of_rank_one_and_a_zero_update_have_the_condition_number_one():
    a, b = [normal(1, 1, 3), normal(1, 1, 4, seed=1)], [normal(1, 5, 1, seed=2), normal(1, 2, 1, seed=3)]
    assert update_condition_number(a, b) == pytest.approx(1)
    assert update_condition_number(a, [0 * b[0], b[1]]) == 1


def test_terms_that_cancel_in_the_product_have_a_large_condition_number():
    a = [normal(1, 2, 3), normal(1, 2, 4, seed=1)]
    b = [normal(1, 3, 2, seed=2).repeat(2, 1, 1), normal(1, 3, 2, seed=3).repeat(2, 1, 1)]
    b[0][1] *= -0.999
    assert update_condition_number(a, b) > 500
    lengths = [torch.stack([f.flatten(1).norm(dim=1) for f in side]).prod(dim=0).norm() for side in (a, b)]
    dense = (kron_sum(*b) @ kron_sum(*a)).norm()
    assert update_condition_number(a, b) == pytest.approx(float(lengths[0] * lengths[1] / dense))
