"""An adapter's tensors in a few tensors of a file: what comes back, how large it is, and files that lie."""

import json
import zlib
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from lsr.algebra.rounding import PRECISIONS, pack, unpack
from tests.lsr.matrices import SEEDS, normal

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


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype is other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@given(adapters(), st.sampled_from(PRECISIONS))
def test_an_adapter_comes_back_with_its_names_and_shapes_and_what_is_no_number_unchanged(tensors, precision):
    found = unpack(load(save(pack(tensors, precision))))
    assert {name: value.shape for name, value in found.items()} == {name: t.shape for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            assert same({name: found[name]}, {name: tensor})
        else:
            assert found[name].dtype is torch.float32
            assert (found[name] - tensor).norm() <= RELATIVE[precision] * tensor.norm() + 1e-6 * tensor.double().norm()


@given(adapters(), st.sampled_from(PRECISIONS), st.randoms(use_true_random=False))
def test_packing_again_gives_the_same_bytes_whatever_the_order_of_the_names(tensors, precision, random):
    stored = pack(tensors, precision)
    found = list(unpack(stored).items())
    random.shuffle(found)
    assert save(pack(dict(found), precision)) == save(stored)


def test_tensors_of_less_than_a_group_are_in_bfloat16():
    small = {"bias": tensor((2,)), "core": tensor((3, 3)), "a": tensor((1, 64))}
    stored, found = pack(small, "2bit"), unpack(pack(small, "2bit"))
    assert stored["small"].shape == (11,)
    assert all(torch.equal(found[name], small[name].bfloat16().float()) for name in ("bias", "core"))
    assert len(found["a"].unique()) == 4


def test_groups_are_even():
    def scales(*shape):
        return len(pack({"a": tensor(shape)}, "2bit")["scales"])

    assert [scales(*shape) for shape in ((64,), (8, 8), (95,), (97,), (384, 8))] == [1, 1, 1, 2, 48]
    assert scales(40, 40) == 25  # 1,600 entries as one row
    assert scales(7, 100) == 14


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_what_is_not_finite_or_could_overflow_is_refused(value):
    with pytest.raises(ValueError, match=r"^a\.b holds values that are not finite, or of 2\^127 and more$"):
        pack({"a.b": torch.tensor([1.0, value])}, "3bit")


def test_other_precisions_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"precision must be one of float32, bfloat16, 8bit, .* 2bit, got '5bit'"):
        pack({}, "5bit")
    with pytest.raises(ValueError, match=r"^a holds values of bool; needed: a floating-point dtype or int64$"):
        pack({"a": torch.tensor([True])}, "3bit")


def stored(**changes):
    return {**pack({"a.b": normal(70, seed=0), "c": torch.arange(5)}, "3bit"), **changes}


def index(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return torch.tensor(list(zlib.compress(text)), dtype=torch.uint8)


LIES = {
    "none": ({}, "it has no index of uint8"),
    "floats": ({"index": torch.zeros(3)}, "it has no index of uint8"),
    "garbage": (stored(index=torch.arange(9, dtype=torch.uint8)), "index is broken: Error -3"),
    "cut off": (stored(index=index(["3bit", {}])[:-3]), "index is broken: cut off, or over 8,000,000 bytes"),
    "bomb": (stored(index=index(b" " * 9_000_000)), "index is broken: cut off, or over 8,000,000 bytes"),
    "deep": (stored(index=index(b'["3bit",' + b'{"a":' * 100_000)), "index is broken: maximum recursion depth"),
    "no pair": (stored(index=index([])), "index is broken: not enough values"),
    "precision": (stored(index=index(["7bit", {}])), "the precision must be one of float32, .* got '7bit'"),
    "no tree": (stored(index=index(["3bit", 7])), "index is broken: 'int' object"),
    "part": (stored(index=index(["3bit", {"a": {"b": ["bool", 9]}}])), r"a\.b: \['bool', 9\] is not one of values, "),
    "no size": (stored(index=index(["3bit", {"a": ["values", 0]}])), r"a: \['values', 0\] is not one of values, "),
    "huge": (
        stored(index=index(["2bit", {"a": ["int64", 5], "b": ["values", 10**15]}])),
        r"says \(25000000000000\d*,\)",
    ),
    "values": (stored(values=torch.zeros(5)), r"values is \(5,\) of float32, but the index says \(27,\) of uint8"),
    "scales": (stored(scales=torch.zeros(1)), r"scales is \(1,\) of float32, but the index says \(1,\) of bfloat16"),
    "counters": (stored(int64=torch.zeros(1, 5).long()), r"int64 is \(1, 5\) of int64, but the index says \(5,\) of"),
    "no counters": ({"index": stored()["index"]}, r"int64 is \(0,\) of int64, but the index says \(5,\) of int64"),
}


@pytest.mark.parametrize(("lie", "said"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_refused_in_a_line(lie, said):
    with pytest.raises(ValueError, match=said) as caught:
        unpack(lie)
    assert "\n" not in str(caught.value)
