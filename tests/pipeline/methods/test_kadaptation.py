"""KAdaptation is the sum of Kronecker products that it says, with factors that all layers share."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from pipeline.methods.kadaptation import KAdaptationConfig, KAdaptationLinear
from tests.capabilities.checks import trainable

N, R = 4, 2


@pytest.fixture
def model():
    """Two adapted layers of different widths, in float64, with no factor at zero."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"first": nn.Linear(8, 12), "second": nn.Linear(12, 8, bias=False)})
    adapted = get_peft_model(base, KAdaptationConfig(n=N, r=R, target_modules=["first", "second"])).double()
    for parameter in trainable(adapted).values():
        parameter.data.normal_()
    return adapted.eval()


def layers(model):
    return [module for module in model.modules() if isinstance(module, KAdaptationLinear)]


def test_the_update_is_the_sum_of_kronecker_products(model):
    for layer in layers(model):
        s, u, v = layer.factors("default")
        expected = sum(torch.kron(s[k], u[k] @ v[k]) for k in range(N))
        assert torch.allclose(layer.get_delta_weight("default"), expected, atol=1e-12)
