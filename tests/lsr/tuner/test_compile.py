import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.linear import adapted_layers

CONFIGS = {
    "two factors": {"rank_shape": (2, 2)},
    "a core between frames": {"rank_shape": (4,), "separation_rank": 1, "train": "core"},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def adapted(config, out_features=10):
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(12, out_features)),
        LsrConfig(**{"target_modules": ["0"], "separation_rank": 2, "alpha": 3, "init_weights": False, **config}),
    )
    return adapted_layers(model)["0"].eval()


def output_and_gradients(function, layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output = function(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *[p.grad.clone() for p in layer.parameters() if p.requires_grad]]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_compiled_layer_is_one_graph_and_equals_the_eager_one(config):
    layer = adapted(config)
    x = torch.randn(5, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for one, two in zip(output_and_gradients(compiled, layer, x), output_and_gradients(layer, layer, x), strict=True):
        assert_close(one, two)
