"""A layer is the plain formula, also fused and in gradients; merged, it says the same; unmerged, it is as it was."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.adapter import apply_with_update, times_core
from tests.kit import refused
from tests.lsr.layers import adapt, add, base, config, normal
from tests.old_tiny.models import logits, tiny
from tests.old_tiny.subjects import Subject
from tests.old_tiny.training import train, trainable

WIDTHS = st.integers(1, 9)
BATCHES = st.sampled_from([(), (2,), (2, 3), (0, 3), (0,)])
RANK_SHAPES = st.sampled_from([(1, 1), (2, 2), (3, 1)])


@given(WIDTHS, WIDTHS, BATCHES, RANK_SHAPES, st.booleans(), st.booleans())
def test_forward_and_the_merged_weight_are_the_kronecker_sums_without_padding(
    n, m, batch, rank_shape, bias, transposed
):
    layer = adapt(base(n, m, bias=bias, transposed=transposed), rank_shape=rank_shape)
    adapter = layer.adapter("default")
    factors = list(adapter.parameters())
    a, b = (sum(map(torch.kron, *side)) for side in (factors[:2], factors[2:]))
    update = 3 / (rank_shape[0] * rank_shape[1]) * b[:m] @ a[:, :n]
    assert_close(adapter.update(), update)
    x = normal(*batch, n)
    weight = layer.base_matrix()
    adapted = layer(x)
    assert adapted.shape == (*batch, m)
    assert_close(adapted, nn.functional.linear(x, weight + update, layer.get_base_layer().bias))
    layer.merge()
    assert_close(layer(x), adapted)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(m, n):
    layer = nn.Linear(n, m).double()
    layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return layer


@pytest.mark.parametrize("make", [hooked, lambda m, n: Doubled(n, m).double()], ids=["hook", "class"])
def test_what_a_base_layer_does_beside_its_product_still_happens(make):
    base_layer = make(4, 6)
    x = normal(5, 6)
    expected = 2 * nn.functional.linear(x, base_layer.weight, base_layer.bias)
    layer = adapt(base_layer)
    assert_close(layer(x), expected + nn.functional.linear(x, layer.get_delta_weight("default")))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_unmerging_restores_every_bit_and_the_layout(dtype, transposed):
    layer = adapt(base(6, 4, dtype=dtype, transposed=transposed))
    before = layer.weight.clone()
    stride = layer.weight.stride()
    layer.merge()
    assert not torch.equal(layer.weight, before)
    assert layer.weight.stride() == stride
    layer.unmerge()
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_a_half_precision_weight_is_merged_in_full_precision_and_rounded_once():
    layer = adapt(base(6, 4, dtype=torch.bfloat16))
    add(layer, "other", config(alpha=5, seed=1))
    exact = layer.weight.float()
    for name in ("default", "other"):
        a, b = (side.float() for side in layer.adapter(name).to_lora())
        exact = exact + layer.adapter(name).scaling * (b @ a)
    layer.merge(adapter_names=["default", "other"])
    assert torch.equal(layer.weight, exact.to(torch.bfloat16))


def test_a_model_without_values_computes_shapes_as_with_lora():
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), LsrConfig(target_modules=["0"], rank_shape=(2,)))
    outputs = model.to("meta")(torch.ones(3, 6, device="meta"))
    outputs.sum().backward()
    assert outputs.shape == (3, 5)
    assert all(parameter.grad.is_meta for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_adapter_changes_no_bit_of_transposed_inputs_as_longformer_has_them(dtype):
    plain = base(24, 24, dtype=dtype)
    x = normal(8, 3, 24, dtype=dtype).transpose(0, 1)
    expected = plain(x)
    assert torch.equal(adapt(plain, init_weights=True)(x), expected)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("targets", [["linear1"], ["linear1", "linear2"]])
def test_torchs_own_encoder_layer_does_not_bypass_the_adapter_in_evaluation(targets, is_padded, layers):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
    fields = {"layers_to_transform": layers, "layers_pattern": "layers", "separation_rank": 2, "init_weights": False}
    model = get_peft_model(encoder.eval(), LsrConfig(target_modules=targets, **fields))
    x = torch.randn(2, 5, 8)
    is_padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if is_padded else None
    with torch.no_grad():
        adapted = model.eval()(x, src_key_padding_mask=is_padding)
        plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
        plain.load_state_dict(model.merge_and_unload().state_dict())
        expected = plain(x, src_key_padding_mask=is_padding)
    is_text = ~is_padding if is_padded else torch.ones(2, 5, dtype=torch.bool)
    assert_close(adapted[is_text], expected[is_text], atol=1e-5, rtol=1e-5)


def sides(m, n, dtype=torch.float64):
    """A and B of rank 4."""
    return normal(4, n, seed=2, dtype=dtype), normal(m, 4, seed=3, dtype=dtype)


def fused(x, weight, bias, a, b):
    return apply_with_update(x, weight, bias, a, b, 0.7)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@given(BATCHES | st.just((4, 6)), WIDTHS, WIDTHS)
def test_the_fused_layer_is_the_plain_formula(with_bias, batch, m, n):
    x = normal(*batch, n)
    weight = normal(m, n, seed=1)
    bias = normal(m, seed=9) if with_bias else None
    a, b = sides(m, n)
    expected = F.linear(x, weight, bias) + 0.7 * F.linear(F.linear(x, a), b)
    assert_close(fused(x, weight, bias, a, b), expected)


@pytest.mark.parametrize("tokens", [3, 16])  # added to outputs; to the weight
def test_all_gradients_of_the_fused_layer_and_their_gradients_are_right(tokens):
    values = [normal(tokens, 5), normal(7, 5, seed=1), normal(7, seed=9), *sides(7, 5)]
    values = [value.requires_grad_() for value in values]
    assert torch.autograd.gradcheck(fused, values)
    # Along random directions: one by one, the second derivatives take a second a case.
    assert torch.autograd.gradgradcheck(fused, values, fast_mode=True)


@pytest.fixture(params=["none", "tf32"])
def _rounding(request):
    """How CPUs round products of float32 matrices."""
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_rounding")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nothing_is_lost_of_an_update_that_is_small_beside_the_weight(dtype):
    """With the 8 bits of bfloat16 1 + 1/1024 is 1, so an update of that size would be lost."""
    x = torch.zeros(64, 4, dtype=dtype)
    weight = torch.ones(4, 4, dtype=dtype)
    a = torch.ones(1, 4, dtype=dtype)
    b = torch.full((4, 1), 2**-10, dtype=dtype)
    x[:, 0], x[:, 1] = 1, -1
    a[0, 1] = -1
    total = apply_with_update(x, weight, None, a, b, 1.0)
    assert_close(total, torch.full_like(total, 2**-9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_activations_give_the_fused_factors_full_precision_gradients(dtype):
    factors = [side.requires_grad_() for side in sides(12, 9, torch.float32)]
    x = normal(20, 9, dtype=dtype)
    weight = normal(12, 9, seed=1, dtype=dtype)
    output = fused(x, weight, None, *factors)
    gradients = torch.autograd.grad(output.double().square().sum(), factors)
    assert output.dtype is dtype
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    exact = [factor.detach().double().requires_grad_() for factor in factors]
    expected = fused(x.double(), weight.double(), None, *exact)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    expected = expected.detach()
    tolerance = 20 * torch.finfo(dtype).eps
    assert_close(output.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=0)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert_close(gradient.double(), right, atol=tolerance * float(right.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "core", [normal(3, 3, dtype=torch.bfloat16), normal(3, dtype=torch.bfloat16)], ids=["full", "diagonal"]
)
def test_a_core_and_bases_of_another_precision_are_multiplied_in_the_higher_one(core):
    bases = normal(3, 7)
    dense = core.double() if core.dim() == 2 else core.double().diag()
    assert_close(times_core(core, bases), dense @ bases)


def quantized(kind):
    """A small BERT whose queries and values have quantized weights."""
    layers = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").nn
    eight = partial(layers.Linear8bitLt, has_fp16_weights=False)
    four = partial(layers.Linear4bit, quant_type="nf4")
    model = tiny("bert-wide")
    make = {"8 bit": eight, "4 bit": four}[kind]
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(("query", "value")):
            layer = make(module.in_features, module.out_features, True)
            layer.load_state_dict(module.state_dict())
            model.set_submodule(name, layer.to("cpu"))  # moving it quantizes it
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["8 bit", "4 bit"])
def test_on_quantized_layers_a_fresh_adapter_changes_no_bit_trains_comes_back_and_is_not_merged(kind, tmp_path):
    model = get_peft_model(quantized(kind), Subject("bert-wide").config()).eval()
    assert torch.equal(logits(model), logits(quantized(kind)))
    losses, moved = train(model, steps=25)
    assert losses[-1] < 0.9 * losses[0]
    assert all(moved.values())
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(quantized(kind)))
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(quantized(kind), str(tmp_path))), logits(model))
    before = logits(model)
    says = "its weight is quantized, and merging would round it again; load the"
    for act in (model.merge_adapter, model.merge_and_unload):
        refused(act, kind=ValueError, says=says)
    assert torch.equal(logits(model), before)
