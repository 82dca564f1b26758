"""Codes of a few bits, and an adapter's tensors in a few tensors of a file: what comes back, and how large it is."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from lsr.algebra import rounding
from lsr.algebra.rounding import PRECISIONS, pack, unpack
from tests.lsr.layers import SEEDS, normal

SHAPES = st.sampled_from([(), (1,), (3, 3), (9,), (2, 5, 3), (1, 70, 3), (2, 384), (384, 2), (130,), (65, 66)])
NAMES = st.lists(st.from_regex(r"[a-c]{1,2}\.[0-9]{1,2}\.[a-c]_[AB]", fullmatch=True), max_size=6, unique=True)
RELATIVE = {"float32": 0, "bfloat16": 0.004, "8bit": 0.02, "4bit": 0.2, "3bit": 0.35, "2bit": 0.6}


def tensor(shape, seed=0):
    return normal(max(1, prod(shape)), seed=seed).reshape(shape)


@st.composite
def adapters(draw):
    """Tensors of any names, most of them of numbers, some of counters."""
    tensors = {}
    for name in draw(NAMES):
        value = tensor(draw(SHAPES), draw(SEEDS))
        dtype = draw(st.sampled_from([torch.float32] * 3 + [torch.bfloat16, torch.float64, torch.int64]))
        tensors[name] = value.to(dtype) if dtype.is_floating_point else (100 * value.abs()).to(dtype)
    return tensors


@given(adapters(), st.sampled_from(PRECISIONS))
def test_an_adapter_comes_back_with_its_names_and_shapes_and_what_is_no_number_unchanged(tensors, precision):
    found = unpack(load(save(pack(tensors, precision))))
    assert {name: value.shape for name, value in found.items()} == {name: t.shape for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            assert found[name].dtype is tensor.dtype
            assert torch.equal(found[name], tensor)
        else:
            assert found[name].dtype is torch.float32
            assert (found[name] - tensor).norm() <= RELATIVE[precision] * tensor.norm() + 1e-6 * tensor.double().norm()


def test_tensors_of_less_than_a_group_are_in_bfloat16():
    small = {"bias": tensor((2,)), "core": tensor((3, 3)), "a": tensor((1, 64))}
    stored, found = pack(small, "2bit"), unpack(pack(small, "2bit"))
    assert stored["small"].shape == (11,)
    assert all(torch.equal(found[name], small[name].bfloat16().float()) for name in ("bias", "core"))
    assert len(found["a"].unique()) == 4


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
    values, lengths = normal(6400, seed=0).float(), torch.full((100,), 64)
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
