"""Dropout of some rows is that of the whole batch."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.training.noise import NoiseOfWholeBatch

COUNT, OWN = 5, torch.tensor([1, 3])
MASK = torch.ones(COUNT, 1, 4, 4).tril().bool()


def drawn(function):
    """What a function gives of one seed, and the number that is drawn next."""
    torch.manual_seed(0)
    return function(), torch.rand(())


def attention(rows, mask):
    query, key, value = torch.randn(3, COUNT, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    return F.scaled_dot_product_attention(query[rows], key[rows], value[rows], mask[rows], dropout_p=0.4)


@pytest.mark.parametrize("mask", [MASK, torch.zeros(MASK.shape).masked_fill(~MASK, -1e9)])
def test_rows_drop_out_as_in_the_whole_batch(mask):
    values = torch.ones(COUNT, 4, 6)

    def some(rows):
        first = F.dropout(values[rows], 0.3)
        tokens = torch.empty_like(values[rows].flatten(0, 1), dtype=torch.bool).bernoulli_(0.5).unflatten(0, (-1, 4))
        return first, torch.nn.Dropout(0.5)(values[rows]), tokens, attention(rows, mask)

    whole, after = drawn(lambda: some(slice(None)))

    def own():
        with NoiseOfWholeBatch(COUNT, OWN):
            return some(OWN)

    found, then = drawn(own)
    assert after == then
    for one, other in zip(whole, found, strict=True):
        torch.testing.assert_close(one[OWN], other)


def test_tensors_without_these_rows_are_left_alone():
    expected, after = drawn(lambda: F.dropout(torch.ones(3, 4), 0.5))

    def inside():
        with NoiseOfWholeBatch(COUNT, OWN):
            return F.dropout(torch.ones(3, 4), 0.5)

    found, then = drawn(inside)
    assert torch.equal(found, expected)
    assert after == then
