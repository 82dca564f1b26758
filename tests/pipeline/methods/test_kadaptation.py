"""KAdaptation is the sum of Kronecker products that it says, and every factor of it trains."""

import copy

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

from pipeline.methods.kadaptation import KadaptationConfig, KadaptationLinear

N, R = 4, 2


class Two(nn.Module):
    """Two layers of different widths, one after the other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 8, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def config(**changes):
    return KadaptationConfig(n=N, r=R, target_modules=["first", "second"], **changes)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Two().double()


@pytest.fixture
def x():
    return torch.randn(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def layers(model):
    return [module for module in model.modules() if isinstance(module, KadaptationLinear)]


def stirred(base):
    """An adapted model, all in float64, with no factor at zero."""
    model = get_peft_model(copy.deepcopy(base), config()).double()
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    return model.eval()


def test_the_update_is_the_sum_of_kronecker_products(base):
    for layer in layers(stirred(base)):
        s, u, v = layer.factors("default")
        expected = sum(torch.kron(s[k], u[k] @ v[k]) for k in range(N))
        assert torch.allclose(layer.get_delta_weight("default"), expected, atol=1e-12)


def test_the_layer_computes_what_its_update_does(base, x):
    model = stirred(base)
    for layer in layers(model):
        inputs = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
        expected = layer.base_layer(inputs) + inputs @ layer.get_delta_weight("default").T
        assert torch.allclose(layer(inputs), expected, atol=1e-12)
    beside = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), base(x))
    model.merge_adapter()
    assert torch.allclose(model(x), beside, atol=1e-12)
    model.unmerge_adapter()
    assert torch.allclose(model.get_base_model().first.base_layer.weight, base.first.weight, atol=1e-12)
    plain = model.merge_and_unload()
    assert isinstance(plain.first, nn.Linear)
    assert torch.allclose(plain(x), beside, atol=1e-12)


def test_a_fresh_adapter_changes_nothing_and_all_of_it_moves_in_two_steps(base, x):
    model = get_peft_model(copy.deepcopy(base), config()).double()
    assert torch.equal(model(x), base(x))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert len(trained) == 1 + 2 * 2
    assert not [name for name, parameter in trained.items() if torch.equal(parameter, before[name])]


def test_all_layers_hold_the_same_factors_and_the_file_has_them_once(base, tmp_path):
    model = stirred(base)
    one, other = (layer.factors("default")[0] for layer in layers(model))
    assert one is other
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == N**3 + 2 * R * (8 + 12)


def test_two_adapters_have_factors_of_their_own(base, x):
    model = stirred(base)
    first = model(x)
    model.add_adapter("second", KadaptationConfig(n=2, r=1, target_modules=["first"]))
    for name in ("second", "default"):
        model.set_adapter(name)
        trained = [parameter for parameter, tensor in model.named_parameters() if tensor.requires_grad]
        assert {parameter.rpartition(".")[2] for parameter in trained} == {name}
        assert torch.equal(model.double()(x), base(x) if name == "second" else first)
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if name.endswith(".second")]
