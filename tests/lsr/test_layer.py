"""An adapted layer against dense matrices in float64, and members of the family against PEFT's LoRA and papers.

Gradients are held to finite differences, merged and unmerged weights to the bit.
"""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from lsr import LsrConfig
from tests import reference, tiny

DENSE = {"rank_shape": (3,)}
FAMILY = {
    "sums of Kronecker products": {"rank_shape": (2, 2), "separation_rank": 2},
    "one of them": {"rank_shape": (3, 1), "separation_rank": 1},
    "dense": DENSE,
    "core": DENSE | {"train": "core"},
    "diagonal core": DENSE | {"train": "core", "core": "diagonal"},
    "all": DENSE | {"train": "all"},
    "all with a diagonal core": DENSE | {"train": "all", "core": "diagonal"},
}
WIDTHS = st.integers(3, 13)  # factors of a prime one are padded
BATCHES = [(), (2,), (2, 3), (4, 6), (0, 3), (0,)]
HALVES = [torch.bfloat16, torch.float16]


def normal(*shape, seed=0, dtype=torch.float64):
    """Return normal values, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def linear(n, m, *, bias=True, transposed=False, dtype=torch.float64):
    """Return a layer with n inputs and m outputs, transposed as in GPT-2 or not."""
    layer = Conv1D(m, n) if transposed else nn.Linear(n, m, bias=bias)
    return tiny.draw(layer).to(dtype)


def adapt(layer, **fields):
    """Return a model of one layer with a perturbed adapter."""
    config = LsrConfig(target_modules=["0"], alpha=5, seed=0, **fields)
    return tiny.stir(get_peft_model(nn.Sequential(layer), config).eval(), size=0.5)


def in_layout(layer, matrix):
    """Return a matrix (m, n) as a layer stores it, or the other way round."""
    return matrix.T if isinstance(layer, Conv1D) else matrix


def trains(parameter):
    """Return whether a parameter is trained."""
    return parameter.requires_grad


def update_of(model, m, n, name="default"):
    """Return alpha / r * B R A in float64, formed densely from the tensors that would be saved."""
    config = model.peft_config[name]
    factors = {}
    for key, value in get_peft_model_state_dict(model, adapter_name=name).items():
        factors[key.rpartition(".")[2]] = value.double()
    a, b, core = reference.sides(factors, m, n)
    divisor = reference.DIAGONAL if config.core == "diagonal" else len(a)
    return config.alpha / divisor * b @ core @ a


# The formula and its gradients.


@pytest.mark.parametrize("form", FAMILY)
@given(WIDTHS, WIDTHS, st.sampled_from(BATCHES), st.booleans(), st.booleans())
def test_the_output_is_that_of_the_dense_formula_also_merged(form, n, m, batch, bias, transposed):
    layer = linear(n, m, bias=bias, transposed=transposed)
    model = adapt(layer, **FAMILY[form])
    update = update_of(model, m, n)
    x = normal(*batch, n)
    expected = F.linear(x, in_layout(layer, layer.weight) + update, layer.bias)
    assert_close(model(x), expected)
    adapted = model.base_model.model[0]
    assert_close(adapted.get_delta_weight("default"), in_layout(layer, update))
    model.merge_adapter()
    assert_close(model(x), expected)


@pytest.mark.parametrize("form", FAMILY)
@pytest.mark.parametrize("tokens", [2, 16], ids=["few tokens", "many tokens"])
def test_all_gradients_and_their_gradients_are_those_of_finite_differences(form, tokens):
    model = adapt(linear(5, 7), **FAMILY[form]).base_model.model.requires_grad_()
    names = [name for name, _ in model.named_parameters()]
    values = [value.detach().requires_grad_() for value in model.parameters()]
    x = normal(tokens, 5).requires_grad_()

    def call(x, *values):
        return functional_call(model, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, [x, *values])
    assert torch.autograd.gradgradcheck(call, [x, *values], fast_mode=True)


@pytest.mark.parametrize("tokens", [2, 16], ids=["few tokens", "many tokens"])
def test_gradients_of_the_input_alone_are_those_of_the_merged_layer(tokens):
    """As below a frozen part of a model that others train."""
    model = adapt(linear(5, 7), **DENSE).requires_grad_(False)
    x = normal(tokens, 5).requires_grad_()
    (actual,) = torch.autograd.grad(model(x).square().sum(), x)
    model.merge_adapter()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    assert_close(actual, expected)


@pytest.mark.parametrize("form", ["sums of Kronecker products", "core"])
def test_dropout_is_that_of_the_adapters_input(form):
    layer = linear(6, 8)
    model = adapt(layer, dropout=0.4, **FAMILY[form])
    x = normal(5, 6)
    plain = F.linear(x, layer.weight, layer.bias)
    update = update_of(model, 8, 6)
    assert_close(model(x), plain + F.linear(x, update))
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        dropped = model(x)
        torch.manual_seed(1)
        expected = plain + F.linear(F.dropout(x, 0.4), update)
    assert_close(dropped, expected)


class Doubled(nn.Linear):
    """A layer that doubles its output."""

    def forward(self, x):
        return 2 * super().forward(x)


def with_hook(n, m):
    """Return a layer whose output a hook doubles."""
    layer = nn.Linear(n, m)
    layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return layer


def with_method(n, m):
    """Return a layer with another forward method, as libraries have it that offload weights."""
    layer = nn.Linear(n, m)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)
    return layer


@pytest.mark.parametrize("make", [Doubled, with_hook, with_method])
def test_what_a_base_layer_does_beside_its_product_still_happens(make):
    layer = make(6, 4).double()
    x = normal(5, 6)
    expected = 2 * F.linear(x, layer.weight, layer.bias)
    model = adapt(layer, **DENSE)
    assert_close(model(x), expected + F.linear(x, update_of(model, 4, 6)))


def test_a_model_without_values_computes_shapes():
    model = adapt(linear(6, 5), **DENSE).to("meta")
    outputs = model(torch.ones(3, 6, device="meta", dtype=torch.float64))
    outputs.sum().backward()
    assert outputs.shape == (3, 5)
    assert all(parameter.grad.is_meta for parameter in filter(trains, model.parameters()))


def encoder():
    """Return torch's own encoder, which has a fast path of its own in evaluation."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()


@pytest.mark.parametrize("targets", [["0.linear1"], ["1.linear2"], ["linear1", "linear2"]], ids="-".join)
@pytest.mark.parametrize("padded", [0, 2])
def test_torchs_own_encoder_does_not_bypass_the_adapter_in_evaluation(targets, padded):
    base = tiny.draw(encoder())
    try:
        model = get_peft_model(base, LsrConfig(target_modules=targets, init_weights=False, **DENSE)).eval()
    except (TypeError, ValueError):  # such a layer may be rejected, but not bypassed
        return
    x = normal(2, 5, 8, dtype=torch.float32)
    is_padding = torch.arange(5).expand(2, 5) >= 5 - padded
    plain = encoder()
    with torch.no_grad():
        actual = model(x, src_key_padding_mask=is_padding)
        plain.load_state_dict(model.merge_and_unload().state_dict())
        expected = plain(x, src_key_padding_mask=is_padding)
    assert_close(actual[~is_padding], expected[~is_padding], atol=1e-5, rtol=1e-5)


# Precisions.


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("form", FAMILY)
def test_a_fresh_adapter_changes_no_bit_whatever_the_layout_of_the_input(form, dtype):
    layer = linear(24, 24, dtype=dtype).requires_grad_(False)
    x = normal(3, 8, 24, dtype=dtype)
    inputs = [x, x.transpose(0, 1), x[0], x.repeat(9, 1, 1)]
    expected = [layer(x) for x in inputs]
    fields = {"target_modules": ["0"], "seed": 0, **FAMILY[form]}
    model = get_peft_model(nn.Sequential(layer), LsrConfig(**fields))
    assert all(torch.equal(model(x), output) for x, output in zip(inputs, expected, strict=True))


@pytest.fixture(params=["none", "tf32"])
def _rounding(request):
    """How CPUs round products of float32 matrices."""
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_rounding")
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_nothing_is_lost_of_an_update_that_is_small_beside_the_weight(dtype):
    """With the 8 bits of bfloat16 1 + 1/1024 is 1, so an update of that size would be lost in the weight."""
    layer = nn.Linear(4, 4, bias=False).to(dtype)
    layer.weight.data.fill_(1)
    config = LsrConfig(rank_shape=(1,), alpha=1, target_modules=["0"])
    model = get_peft_model(nn.Sequential(layer), config)
    x = torch.tensor([1, -1, 0, 0], dtype=dtype).repeat(64, 1)
    values = {"factor_A1": x[None, :1], "factor_B1": torch.full((1, 4, 1), 2**-10)}
    state = {f"base_model.model.0.lsr_adapters.{name}": value for name, value in values.items()}
    set_peft_model_state_dict(model, state)
    outputs = model(x)
    assert_close(outputs, torch.full_like(outputs, 2**-9))


def assert_near(actual, expected, dtype):
    """Check that values are the expected ones up to rounding in a dtype, relative to the largest."""
    tolerance = 20 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert_close(actual.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("form", ["sums of Kronecker products", "all"])
def test_activations_of_low_precision_give_factors_full_precision_gradients(form, dtype):
    low = adapt(linear(9, 12, dtype=dtype), **FAMILY[form])
    exact = adapt(linear(9, 12), **FAMILY[form])
    exact.load_state_dict(low.state_dict())
    x = normal(20, 9, dtype=dtype)
    outputs = low(x)
    expected = exact(x.double())
    assert_near(outputs, expected, dtype)
    outputs.double().square().sum().backward()
    expected.square().sum().backward()
    trained = [pair for pair in zip(low.parameters(), exact.parameters(), strict=True) if trains(pair[0])]
    for ours, right in trained:
        assert ours.grad.dtype is torch.float32
        assert_near(ours.grad, right.grad, dtype)


def test_under_autocast_the_layer_computes_in_half_precision():
    model = adapt(linear(9, 12, dtype=torch.float32), **DENSE)
    x = normal(20, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
    assert outputs.dtype is torch.bfloat16
    assert_near(outputs, model(x).double(), torch.bfloat16)
    outputs.float().sum().backward()
    assert {parameter.grad.dtype for parameter in filter(trains, model.parameters())} == {torch.float32}


# Merging.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_unmerging_restores_every_bit_and_the_layout(dtype, transposed):
    layer = linear(6, 4, dtype=dtype, transposed=transposed)
    before = layer.weight.clone()
    stride = layer.weight.stride()
    model = adapt(layer, **DENSE)
    model.merge_adapter()
    assert not torch.equal(layer.weight, before)
    assert layer.weight.stride() == stride
    model.unmerge_adapter()
    assert torch.equal(layer.weight, before)
    assert layer.weight.stride() == stride


def test_a_weight_of_half_precision_is_rounded_once_for_all_merged_adapters():
    layer = linear(6, 4, dtype=torch.bfloat16)
    exact = layer.weight.float()
    model = adapt(layer, **DENSE)
    model.add_adapter("other", LsrConfig(target_modules=["0"], init_weights=False, alpha=3, **DENSE))
    for name in ("default", "other"):
        exact = exact + model.base_model.model[0].get_delta_weight(name)
    model.merge_adapter(["default"])
    model.merge_adapter(["other"])
    assert torch.equal(layer.weight, exact.to(torch.bfloat16))


# Members of the family that others have written down.


def labeled(causal=False):
    """Return a batch with labels."""
    batch = tiny.batch()
    return batch | {"labels": batch["input_ids"] if causal else torch.arange(4) % tiny.LABELS}


def step(model, optimizer, batch):
    """Take a training step; return the loss before it."""
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(("architecture", "causal"), [("bert", False), ("gpt2", False), ("llama", True)])
def test_with_one_factor_a_side_it_is_lora_step_for_step(architecture, causal):
    """Reference: PEFT's LoRA with the same numbers, Hu et al. 2021 (arXiv 2106.09685)."""
    targets = tiny.ARCHITECTURES[architecture].targets
    common = {"target_modules": targets, "task_type": "CAUSAL_LM" if causal else "SEQ_CLS"}
    weights = []
    models = []
    for config in (LsrConfig(rank_shape=(4,), alpha=7, **common), LoraConfig(r=4, lora_alpha=7, **common)):
        base = tiny.base_model(architecture, causal=causal).double()
        model = get_peft_model(base, config).double()
        models.append(model)
        weights.append([*filter(trains, model.parameters())])
    ours, theirs = weights
    for own, other in zip(ours, theirs, strict=True):
        own.data.copy_(other.reshape(own.shape))
    start = [other.clone() for other in theirs]
    optimizers = [torch.optim.AdamW(parameters, lr=0.02) for parameters in weights]
    for _ in range(5):
        one, two = map(step, models, optimizers, [labeled(causal)] * 2)
        assert one == pytest.approx(two, rel=1e-9)
    for own, other, before in zip(ours, theirs, start, strict=True):
        assert_close(own.reshape(other.shape), other, rtol=1e-7, atol=1e-9)
        assert not torch.equal(other, before)


def test_the_usual_configuration_has_the_parameters_of_the_paper():
    """Li & Sarwate 2025 (arXiv 2502.13568): 3,584 for a 768 x 768 layer with ranks (2, 2) and 16 terms."""
    model = get_peft_model(nn.Sequential(nn.Linear(768, 768)), LsrConfig(target_modules=["0"]))
    assert model.get_nb_trainable_parameters()[0] == 3584


@pytest.mark.parametrize("transposed", [False, True])
def test_a_core_between_singular_vectors_is_lora_xs(transposed):
    """W + c U R V^T (Bałazy et al. 2024, arXiv 2405.17604): signs and singular values may be in R."""
    layer = linear(9, 12, transposed=transposed)
    u, _, vt = np.linalg.svd(in_layout(layer, layer.weight).detach())
    model = adapt(layer, train="core", init_weights="principal", **DENSE)
    state = get_peft_model_state_dict(model)
    a = state["base_model.model.0.lsr_adapters.factor_A1"][0]
    b = state["base_model.model.0.lsr_adapters.factor_B1"][0]
    assert_close((a @ vt[:3].T).abs(), torch.eye(3).double())
    assert_close((u[:, :3].T @ b).abs(), torch.eye(3).double())


def test_shared_layers_are_lotr_and_have_its_gradients():
    """ΔW_l = c B R_l A (Bershatsky et al. 2024, arXiv 2402.01376), with gradients from torch's autograd."""
    config = LsrConfig(rank_shape=(4,), alpha=7, train="all", share="layers", init_weights=False, seed=0)
    model = tiny.stir(get_peft_model(tiny.base_model("bert").double(), config))
    trained = {name: parameter for name, parameter in model.named_parameters() if trains(parameter)}
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in trained.items()}
    plain = tiny.base_model("bert").double()
    weights = {}
    for index, kind in product((0, 1), ("query", "value")):
        first, layer = (f"bert.encoder.layer.{at}.attention.self.{kind}" for at in (0, index))
        prefix = "base_model.model.{}.lsr_adapters.default.{}"
        a = leaves[prefix.format(first, "factor_A1")][0]
        b = leaves[prefix.format(first, "factor_B1")][0]
        core = leaves[prefix.format(layer, "core")]
        weights[f"{layer}.weight"] = plain.get_submodule(layer).weight + 7 / 4 * b @ core @ a
    expected = functional_call(plain, weights, kwargs=labeled())
    actual = model(**labeled())
    assert_close(actual.logits, expected.logits)
    actual.loss.backward()
    expected.loss.backward()
    for name, parameter in trained.items():
        assert_close(parameter.grad, leaves[name].grad)
