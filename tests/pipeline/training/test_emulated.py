"""bf16 by way of fp32: the products, their gradients, and a training that uses them."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.training import emulated
from pipeline.training.emulated import EmulatedBf16
from tests.pipeline.training.test_trainer import trained

PRODUCTS = {
    "linear": lambda x, y, z: F.linear(x, y.T, z[0]),
    "matmul": lambda x, y, z: x @ y,
    "transposed": lambda x, y, z: (y.T @ x.T).T,
    "addmm": lambda x, y, z: torch.addmm(z, x, y, beta=0.5, alpha=2.0),
    "in place": lambda x, y, z: z.clone().addmm_(x, y, alpha=-3.0),
    "batched": lambda x, y, z: torch.stack([x, x + 1]) @ torch.stack([y, y - 1]),
    "batched sum": lambda x, y, z: torch.baddbmm(z[None], x[None], y[None], alpha=0.25),
    "batched sum in place": lambda x, y, z: z.clone()[None].baddbmm_(x[None], y[None]),
}


def operands(dtype):
    draws = torch.Generator().manual_seed(0)
    shapes = ((7, 33), (33, 5), (7, 5))
    return [torch.randn(shape, generator=draws).bfloat16().to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products_and_gradients_are_the_exact_ones_rounded_to_bf16(product):
    exact, given = operands(torch.float64), operands(torch.bfloat16)
    expected = product(*exact)
    expected.sum().backward()
    with EmulatedBf16():
        found = product(*given)
        found.sum().backward()
    assert found.dtype is torch.bfloat16
    # Half a unit in the last place is 2**-9; cancellation and rounded terms of a sum may double it.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-7)
    for one, other in zip(given, exact, strict=True):
        if one.grad is not None:
            assert one.grad.dtype is torch.bfloat16
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=2**-7, atol=2**-5)


def test_a_product_is_rounded_once():
    x, y = (value.detach() for value in operands(torch.bfloat16)[:2])
    with EmulatedBf16():
        assert torch.equal(x @ y, (x.float() @ y.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_dtypes_are_left_to_torch(dtype):
    x, y, z = operands(dtype)
    with EmulatedBf16():
        found = torch.addmm(z, x, y)
    assert torch.equal(found, torch.addmm(z, x, y))


@pytest.mark.parametrize("word", ["lsr", "lora"])
def test_training_in_bf16_without_instructions_for_it_is_that_of_torch_but_for_rounding(tmp_path, monkeypatch, word):
    seen = []
    product = emulated._product
    monkeypatch.setattr(emulated, "_product", lambda *given: seen.append(given[0]) or product(*given))
    monkeypatch.setattr(emulated, "is_needed", lambda: False)
    expected = trained(tmp_path / "torch", word, bf16=True)
    loss = expected.evaluate()["eval_loss"]
    assert not seen
    monkeypatch.setattr(emulated, "is_needed", lambda: True)
    found = trained(tmp_path / "emulated", word, bf16=True)
    assert seen
    seen.clear()
    assert abs(loss - found.evaluate()["eval_loss"]) < 1e-3
    assert seen
    values = found.model.state_dict()
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(values[name], value, rtol=1e-2, atol=1e-3, msg=name)
    seen.clear()
    trained(tmp_path / "fp32", word).evaluate()
    assert not seen


def test_is_needed_where_torch_and_onednn_have_no_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert emulated.is_needed()
    monkeypatch.undo()
    assert emulated.is_needed() is not torch.ops.mkldnn._is_mkldnn_bf16_supported()
