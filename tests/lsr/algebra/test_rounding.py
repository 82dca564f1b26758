"""Codes of a few bits: how near they are to the values, and their bytes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lsr.algebra import rounding
from tests.lsr.layers import SEEDS, normal

BITS = st.sampled_from([2, 3, 4, 8])


@st.composite
def grouped(draw):
    """Values in groups of all sizes and magnitudes; one group is zero."""
    lengths = draw(st.lists(st.integers(1, 95), min_size=1, max_size=5))
    powers = draw(st.lists(st.integers(-90, 90), min_size=len(lengths), max_size=len(lengths)))
    groups = [
        2.0**power * normal(size, seed=draw(SEEDS)) ** draw(st.sampled_from([1, 3]))
        for size, power in zip(lengths, powers, strict=True)
    ]
    return torch.cat([*groups, torch.zeros(7)]).float(), torch.tensor([*lengths, 7])


def rounded(values, lengths, bits):
    codes, scales = rounding.to_codes(values, lengths, bits)
    return rounding.from_codes(codes, scales.repeat_interleave(lengths), bits)


@given(grouped(), BITS)
def test_an_entry_that_is_not_clipped_errs_by_half_a_step_at_most(problem, bits):
    values, lengths = problem
    scales = rounding.to_codes(values, lengths, bits)[1].float().repeat_interleave(lengths)
    is_inside = values.abs() <= 2 ** (bits - 1) * scales
    errors = (rounded(values, lengths, bits) - values).abs()
    assert (errors[is_inside] <= (scales / 2 * (1 + 1e-5))[is_inside]).all()
    assert not rounded(torch.tensor([0.0, 0.0, 1e-40, -1e-39]), torch.tensor([2, 2]), bits).any()  # too small


def test_the_best_step_of_a_normal_distribution_is_found():
    values = normal(6400, seed=0).float()
    lengths = torch.full((100,), 64)
    # Max 1960, "Quantizing for minimum distortion", table II: the least mean squared errors of 4, 8 and 16 equal steps.
    for bits, least in ((2, 0.1188), (3, 0.03744), (4, 0.01154)):
        assert float((rounded(values, lengths, bits) - values).square().mean()) < 1.05 * least


@given(BITS, st.data())
def test_bits_follow_one_another_without_a_gap(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    number = sum(code << bits * place for place, code in enumerate(codes))
    packed = rounding.to_bytes(torch.tensor(codes, dtype=torch.uint8), bits)
    assert bytes(packed.tolist()) == number.to_bytes(-(-bits * len(codes) // 8), "little")
    assert rounding.from_bytes(packed, bits, len(codes)).tolist() == codes
