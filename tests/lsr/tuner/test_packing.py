"""An adapter's tensors in a few tensors of a file: what comes back, and how large it is."""

import json
import zlib
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from lsr.algebra.rounding import PRECISIONS
from lsr.tuner.packing import pack, unpack
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
    actual = unpack(load(save(pack(tensors, precision))))
    assert {name: value.shape for name, value in actual.items()} == {name: t.shape for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            assert actual[name].dtype is tensor.dtype
            assert torch.equal(actual[name], tensor)
        else:
            assert actual[name].dtype is torch.float32
            assert (actual[name] - tensor).norm() <= RELATIVE[precision] * tensor.norm() + 1e-6 * tensor.double().norm()


def test_tensors_of_less_than_a_group_are_in_bfloat16():
    small = {"bias": tensor((2,)), "core": tensor((3, 3)), "a": tensor((1, 64))}
    stored = pack(small, "2bit")
    actual = unpack(pack(small, "2bit"))
    assert stored["small"].shape == (11,)
    assert all(torch.equal(actual[name], small[name].bfloat16().float()) for name in ("bias", "core"))
    assert len(actual["a"].unique()) == 4


@pytest.mark.parametrize("shape", [[10**400], 8 * [10**300], 8 * [2**40], 8 * [10**4000]])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_of_more_entries_than_any_memory_has_is_refused(shape, precision):
    stored = pack({"a": tensor((1, 64))}, precision)
    text = json.dumps([precision, {"a": ["values", *shape]}]).encode()
    index = torch.tensor(list(zlib.compress(text)), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the index has|limit"):
        unpack({**stored, "index": index})
