from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lsr.functional import add_low_rank

SIZES = st.integers(1, 6)
BATCHES = st.sampled_from([(), (2,), (2, 3), (0, 3), (0,)])


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def operands(batch, m, n, r, dtype=torch.float64):
    """result, x, A, B."""
    return (
        normal(*batch, m, dtype=dtype),
        normal(*batch, n, dtype=dtype, seed=1),
        normal(r, n, seed=2, dtype=dtype),
        normal(m, r, seed=3, dtype=dtype),
    )


@given(BATCHES, SIZES, SIZES, SIZES, st.sampled_from([1.0, -0.5, 0.0, 7.25]))
def test_it_adds_the_dense_update(batch, m, n, r, scaling):
    result, x, a, b = operands(batch, m, n, r)
    assert_close(add_low_rank(result, x, a, b, scaling), result + F.linear(x, scaling * b @ a))


@given(BATCHES, SIZES, SIZES, SIZES)
def test_the_result_keeps_the_shape_and_the_input_is_left_alone(batch, m, n, r):
    given_values = operands(batch, m, n, r)
    before = [value.clone() for value in given_values]
    assert add_low_rank(*given_values, 2.0).shape == (*batch, m)
    assert all(torch.equal(value, old) for value, old in zip(given_values, before, strict=True))


@given(BATCHES.filter(prod), SIZES, SIZES, SIZES)
def test_all_four_gradients_are_right(batch, m, n, r):
    values = [value.requires_grad_() for value in operands(batch, m, n, r)]
    assert torch.autograd.gradcheck(lambda *args: add_low_rank(*args, 0.7), values)


def test_no_tokens_give_zero_gradients_to_the_factors():
    result, x, a, b = operands((0, 3), 4, 5, 2)
    a.requires_grad_()
    b.requires_grad_()
    add_low_rank(result, x, a, b, 2.0).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))
    assert torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_a_non_contiguous_input_and_result_give_the_same_sum(layout):
    _, _, a, b = operands((), 4, 6, 2)
    x, result = {
        "transposed": (normal(6, 3, 2).permute(2, 1, 0), normal(4, 3, 2, seed=1).permute(2, 1, 0)),
        "strided": (normal(2, 3, 12)[..., ::2], normal(2, 3, 8, seed=1)[..., ::2]),
        "expanded": (normal(1, 3, 6).expand(2, 3, 6), normal(1, 3, 4, seed=1).expand(2, 3, 4)),
    }[layout]
    assert not x.is_contiguous()
    assert_close(add_low_rank(result, x, a, b, 2.0), result + F.linear(x, 2.0 * b @ a))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_result_keeps_its_dtype_whatever_that_of_the_factors(dtype, factor_dtype):
    result, x, a, b = operands((2, 3), 4, 5, 2, dtype)
    total = add_low_rank(result, x, a.to(factor_dtype), b.to(factor_dtype), 0.5)
    assert total.dtype is dtype
    dense = result.double() + 0.5 * x.double() @ a.double().T @ b.double().T
    assert_close(total.double(), dense, atol=8 * max(torch.finfo(dtype).eps, torch.finfo(factor_dtype).eps), rtol=0.05)


def saved_bytes_and_gradients(x, a, b, result):
    """Run forward and backward; return every tensor that the forward pass keeps for the backward pass."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = add_low_rank(result, x, a, b, 0.5)
    total.float().square().sum().backward()
    return kept


def test_low_precision_activations_give_full_precision_gradients_to_the_factors():
    result, x, a, b = operands((2, 3), 4, 5, 2, torch.bfloat16)
    a, b = a.float().requires_grad_(), b.float().requires_grad_()
    saved_bytes_and_gradients(x, a, b, result)
    assert (a.grad.dtype, b.grad.dtype) == (torch.float32, torch.float32)
    assert a.grad.any()
    assert b.grad.any()


def test_the_activations_are_never_copied_into_the_dtype_of_the_factors():
    result, x, a, b = operands((16, 16), 40, 50, 2, torch.bfloat16)
    x.requires_grad_()
    kept = saved_bytes_and_gradients(x, a.float().requires_grad_(), b.float().requires_grad_(), result)
    as_large = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert {tensor.data_ptr() for tensor in as_large} == {x.data_ptr()}
    assert sum(tensor.nbytes for tensor in kept if tensor not in set(as_large)) < x.nbytes / 4


def test_autocast_computes_in_bfloat16_with_full_precision_gradients():
    layer = nn.Linear(5, 4)
    x, a, b = (normal(*shape, dtype=torch.float32).requires_grad_() for shape in ((2, 5), (2, 5), (4, 2)))
    with torch.autocast("cpu", torch.bfloat16):
        total = add_low_rank(layer(x), x, a, b, 0.5)
    total.float().sum().backward()
    assert total.dtype is torch.bfloat16
    assert {value.grad.dtype for value in (x, a, b)} == {torch.float32}
    assert_close(total.float(), layer(x) + 0.5 * x @ a.T @ b.T, atol=0.1, rtol=0.05)
