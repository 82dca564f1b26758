"""An adapted layer against dense matrices in float64, and members of the family against PEFT's LoRA and papers.

Gradients are held to finite differences, merged and unmerged weights to the bit.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
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
    gradients = []
    for _ in range(2):
        x = normal(tokens, 5).requires_grad_()
        model(x).square().sum().backward()
        gradients.append(x.grad)
        model.merge_adapter()
    assert_close(*gradients)


def test_several_active_adapters_add_up():
    layer = linear(6, 8)
    model = adapt(layer, **FAMILY["core"])
    model.add_adapter("other", LsrConfig(target_modules=["0"], alpha=3, init_weights=False, separation_rank=1))
    model.base_model.set_adapter(["default", "other"])
    total = layer.weight + update_of(model, 8, 6) + update_of(model, 8, 6, "other")
    x = normal(5, 6)
    assert_close(model(x), F.linear(x, total, layer.bias))


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


def with_hook(layer):
    """Double what a layer returns, by a hook."""
    layer.register_forward_hook(lambda layer, inputs, output: 2 * output)


def with_method(layer):
    """Double what a layer returns, by another forward method, as libraries do that offload weights."""
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("change", [with_hook, with_method])
def test_what_a_base_layer_does_beside_its_product_still_happens(change):
    layer = linear(6, 4)
    change(layer)
    x = normal(5, 6)
    expected = 2 * F.linear(x, layer.weight, layer.bias)
    model = adapt(layer, **DENSE)
    assert_close(model(x), expected + F.linear(x, update_of(model, 4, 6)))


def test_a_model_without_values_computes_shapes():
    model = adapt(linear(6, 5), **DENSE).to("meta")
    outputs = model(torch.ones(3, 6, device="meta", dtype=torch.float64))
    outputs.sum().backward()
    assert outputs.shape == (3, 5)
    assert all(parameter.grad.is_meta for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
def test_torchs_own_encoder_does_not_bypass_the_adapter_in_evaluation(layers, is_padded):
    def encoder():
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()

    base = tiny.draw(encoder())
    targets = [f"layers.{index}.linear1" for index in layers]
    try:
        model = tiny.stir(get_peft_model(base, LsrConfig(target_modules=targets, **DENSE)).eval())
    except (TypeError, ValueError):  # such a layer may be rejected, but not bypassed
        return
    plain = encoder()
    is_padding = torch.zeros(2, 5, dtype=torch.bool)
    is_padding[1, 3:] = is_padded
    x = normal(2, 5, 8, dtype=torch.float32)
    with torch.no_grad():
        adapted = model(x, src_key_padding_mask=is_padding)
        plain.load_state_dict(model.merge_and_unload().state_dict())
        expected = plain(x, src_key_padding_mask=is_padding)
    assert_close(adapted[~is_padding], expected[~is_padding], atol=1e-5, rtol=1e-5)


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
    model = get_peft_model(nn.Sequential(layer), LsrConfig(rank_shape=(1,), alpha=1, target_modules=["0"]))
    b = torch.full((1, 4, 1), 2.0**-10)
    a = torch.tensor([[[1.0, -1.0, 1.0, 1.0]]])
    factors = {"factor_A1": a, "factor_B1": b}
    for name, parameter in model.named_parameters():
        value = factors.get(name.rpartition(".")[2], parameter.data)
        parameter.data.copy_(value)
    x = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=dtype).repeat(64, 1)
    outputs = model(x)
    assert_close(outputs, torch.full_like(outputs, 2**-9))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("form", ["sums of Kronecker products", "all"])
def test_activations_of_low_precision_give_factors_full_precision_gradients(form, dtype):
    low = adapt(linear(9, 12, dtype=dtype), **FAMILY[form])
    exact = adapt(linear(9, 12).to(dtype).double(), **FAMILY[form])
    exact.load_state_dict(low.state_dict())
    x = normal(20, 9, dtype=dtype)
    for model in (low, exact):
        outputs = model(x.to(model.base_model.model[0].weight.dtype))
        outputs.double().square().sum().backward()
    tolerance = 20 * torch.finfo(dtype).eps
    assert_close(low(x).double(), exact(x.double()), rtol=0, atol=tolerance * float(exact(x.double()).abs().max()))
    for ours, right in zip(low.parameters(), exact.parameters(), strict=True):
        if not ours.requires_grad:
            continue
        assert ours.grad.dtype is torch.float32
        largest = float(right.grad.abs().max())
        assert_close(ours.grad.double(), right.grad, rtol=0, atol=tolerance * largest)


def test_under_autocast_the_output_is_that_of_the_layer_in_half_precision():
    layer = linear(9, 12, dtype=torch.float32)
    model = adapt(layer, **DENSE)
    x = normal(20, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
    assert outputs.dtype is torch.bfloat16
    assert_close(outputs.float(), model(x), atol=0.1, rtol=0.02)
    outputs.float().sum().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in model.parameters() if parameter.requires_grad)


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


@pytest.mark.parametrize("at_once", [False, True])
def test_a_weight_of_half_precision_is_rounded_once_for_all_merged_adapters(at_once):
    layer = linear(6, 4, dtype=torch.bfloat16)
    exact = layer.weight.float()
    before = layer.weight.clone()
    model = adapt(layer, **DENSE)
    model.add_adapter("other", LsrConfig(target_modules=["0"], init_weights=False, alpha=3, seed=1, **DENSE))
    adapted = model.base_model.model[0]
    for name in ("default", "other"):
        exact = exact + adapted.get_delta_weight(name)
    if not at_once:
        model.merge_adapter(["default"])
    model.merge_adapter(["default", "other"])
    assert torch.equal(layer.weight, exact.to(torch.bfloat16))
    model.unmerge_adapter()
    assert torch.equal(layer.weight, before)


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
    configs = [LsrConfig(rank_shape=(4,), alpha=7, **common), LoraConfig(r=4, lora_alpha=7, **common)]
    models = []
    for config in configs:
        base = tiny.base_model(architecture, causal=causal).double()
        models.append(get_peft_model(base, config).double())
    ours, theirs = models
    weights = list(zip(*(filter(trains, model.parameters()) for model in models), strict=True))
    for own, other in weights:
        own.data.copy_(other.reshape(own.shape))
    start = [other.clone() for _, other in weights]
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    optimizers = [torch.optim.AdamW(filter(trains, model.parameters()), lr=0.02) for model in models]
    batch = labeled(causal)
    for _ in range(5):
        one, two = map(step, models, optimizers, [batch, batch])
        assert one == pytest.approx(two, rel=1e-9)
    for (own, other), before in zip(weights, start, strict=True):
        assert_close(own.reshape(other.shape), other, rtol=1e-7, atol=1e-9)
        assert not torch.equal(other, before)


def trains(parameter):
    """Return whether a parameter is trained."""
    return parameter.requires_grad


def test_the_usual_configuration_has_the_parameters_of_the_paper():
    """Li & Sarwate 2025 (arXiv 2502.13568): 3,584 for a 768 x 768 layer with ranks (2, 2) and 16 terms."""
    model = get_peft_model(nn.Sequential(nn.Linear(768, 768)), LsrConfig(target_modules=["0"]))
    assert model.get_nb_trainable_parameters()[0] == 3584


@pytest.mark.parametrize("transposed", [False, True])
def test_a_core_between_singular_vectors_is_lora_xs(transposed):
    """W + c U R V^T (Bałazy et al. 2024, arXiv 2405.17604), whose S is in our core."""
    layer = linear(9, 12, transposed=transposed)
    weight = in_layout(layer, layer.weight).detach()
    u, _, vt = np.linalg.svd(weight)
    model = adapt(layer, train="core", init_weights="principal", **DENSE)
    state = get_peft_model_state_dict(model)
    a, b, core = (state[f"base_model.model.0.lsr_adapters.{name}"] for name in ("factor_A1", "factor_B1", "core"))
    row_signs = (a[0] @ vt[:3].T).diagonal().sign()
    column_signs = (u[:, :3].T @ b[0]).diagonal().sign()
    theirs = column_signs[:, None] * core * row_signs
    x = normal(5, 9)
    expected = F.linear(x, weight + 5 / 3 * u[:, :3] @ theirs @ vt[:3], layer.bias)
    assert_close(model(x), expected)


def test_shared_layers_are_lotr_and_have_its_gradients():
    """ΔW_l = c B R_l A (Bershatsky et al. 2024, arXiv 2402.01376), with gradients from torch's autograd."""
    config = LsrConfig(rank_shape=(4,), alpha=7, train="all", share="layers", init_weights=False, seed=0)
    model = get_peft_model(tiny.base_model("bert").double(), config)
    tiny.stir(model)
    plain = tiny.base_model("bert").double()
    weights = {}
    leaves = {}
    for kind in ("query", "value"):
        layers = [f"bert.encoder.layer.{index}.attention.self.{kind}" for index in (0, 1)]
        first, second = (model.base_model.model.get_submodule(name).lsr_adapters["default"] for name in layers)
        a, b = (leaf(leaves, first.get_parameter(name)) for name in ("factor_A1", "factor_B1"))
        for name, adapter in zip(layers, (first, second), strict=True):
            update = 7 / 4 * b[0] @ leaf(leaves, adapter.core) @ a[0]
            weights[f"{name}.weight"] = plain.get_submodule(name).weight + update
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in leaves}
    expected = functional_call(plain, weights, kwargs=labeled())
    actual = model(**labeled())
    assert_close(actual.logits, expected.logits)
    actual.loss.backward()
    expected.loss.backward()
    for ours, other in leaves.items():
        assert other.grad.any()
        assert_close(ours.grad, other.grad)


def leaf(leaves, parameter):
    """Return a copy of a parameter with gradients of its own, and note of which parameter it is one."""
    leaves[parameter] = parameter.detach().clone().requires_grad_()
    return leaves[parameter]
