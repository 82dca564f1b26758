"""BitFit's shifts are what training the biases themselves would be."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.methods.bitfit import BitfitConfig, biased_layers


class Three(nn.Module):
    """A layer of each kind that adds a bias, and one that has none."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.dense, self.norm, self.conv = nn.Linear(6, 6), nn.LayerNorm(6), Conv1D(4, 6)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(self.norm(torch.tanh(self.dense(self.embed(x))))))


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Three()


@pytest.fixture
def x():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(base):
    return get_peft_model(copy.deepcopy(base), BitfitConfig(target_modules=biased_layers(base, ["head"])))


def steps(model, parameters, x):
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def test_the_layers_are_those_with_a_bias_outside_of_the_head(base):
    assert biased_layers(base, ["head"]) == ["dense", "norm", "conv"]


def test_shifts_train_as_the_biases_would(base, model, x):
    assert torch.equal(model(x), base(x))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 6 + 6 + 4
    biases = [base.dense.bias, base.norm.bias, base.conv.bias]
    steps(model, trained, x)
    with model.disable_adapter():
        assert torch.equal(model(x), base(x))
    steps(base, biases, x)
    assert torch.allclose(model(x), base(x), atol=1e-6)
    beside = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), beside, atol=1e-6)
    model.unmerge_adapter()
    assert torch.allclose(model.merge_and_unload().dense.bias, base.dense.bias, atol=1e-6)


def test_the_file_holds_the_shifts_and_nothing_else(base, model, x, tmp_path):
    steps(model, [parameter for parameter in model.parameters() if parameter.requires_grad], x)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(saved) == [f"base_model.model.{name}.bitfit_shifts.bias" for name in ("conv", "dense", "norm")]
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(loaded(x), model(x))
    assert not [parameter for parameter in loaded.parameters() if parameter.requires_grad]


def test_a_bias_that_is_used_otherwise_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
    with pytest.raises(ValueError, match="1 is of Bilinear, whose bias cannot be shifted"):
        biased_layers(model, [])
    with pytest.raises(TypeError, match="BitFit shifts the bias of a layer that adds one, but this is of Bilinear"):
        get_peft_model(model, BitfitConfig(target_modules=["1"]))
