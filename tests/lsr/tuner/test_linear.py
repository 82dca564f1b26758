import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig
from tests.lsr.layers import adapt, base, config, normal

WIDTHS = st.integers(1, 9)
BATCHES = st.sampled_from([(), (2,), (2, 3), (0, 3)])
RANK_SHAPES = st.sampled_from([(1, 1), (2, 2), (3, 1)])


@given(WIDTHS, WIDTHS, BATCHES, RANK_SHAPES, st.booleans(), st.booleans())
def test_forward_and_the_merged_weight_are_the_kronecker_sums_without_padding(
    n, m, batch, rank_shape, bias, transposed
):
    layer = adapt(base(n, m, bias=bias, transposed=transposed), rank_shape=rank_shape)
    adapter = layer.adapter("default")
    a, b = (sum(map(torch.kron, *side)) for side in adapter.factors())
    update = 3 / (rank_shape[0] * rank_shape[1]) * b[:m] @ a[:, :n]
    assert_close(adapter.update(), update)
    x, weight = normal(*batch, n), layer.base_matrix()
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
    before, stride = layer.weight.clone(), layer.weight.stride()
    layer.merge()
    assert not torch.equal(layer.weight, before)
    assert layer.weight.stride() == stride
    layer.unmerge()
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_a_half_precision_weight_is_merged_in_full_precision_and_rounded_once():
    layer = adapt(base(6, 4, dtype=torch.bfloat16))
    layer.update_layer("other", config(alpha=5, seed=1))
    exact = layer.weight.float()
    for name in ("default", "other"):
        a, b = (side.float() for side in layer.adapter(name).collapse())
        exact = exact + layer.adapter(name).scaling * (b @ a)
    layer.merge(adapter_names=["default", "other"])
    assert torch.equal(layer.weight, exact.to(torch.bfloat16))


@pytest.mark.parametrize("targets", [["linear1"], ["linear1", "linear2"]])
def test_torchs_own_encoder_layer_does_not_bypass_the_adapter_in_evaluation(targets):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
    model = get_peft_model(encoder.eval(), LsrConfig(target_modules=targets, separation_rank=2, init_weights=False))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        adapted = model.eval()(x)
        plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
        plain.load_state_dict(model.merge_and_unload().state_dict())
        assert_close(adapted, plain(x), atol=1e-5, rtol=1e-5)
