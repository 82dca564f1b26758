"""Degrees of freedom equal the rank of the Jacobian of the update by what trains."""

import pytest
import torch
from peft import C3AConfig, FourierFTConfig, LoKrConfig, LoraConfig, UniLoraConfig, VeraConfig, get_peft_model
from torch import nn

import lsr
from pipeline.methods.freedom import degrees_of_freedom
from pipeline.methods.kadaptation import KadaptationConfig

WIDTH = 12


class Pair(nn.Module):
    """Two layers of one kind."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(WIDTH, WIDTH, bias=False)}) for _ in range(2))
        self.config = {"model_type": "none"}

    def forward(self, x):
        return torch.cat([layer["query"](x) for layer in self.layers], dim=-1)


def dense(**others):
    return lsr.LsrConfig(**{"rank_shape": (3,), "separation_rank": 1, "target_modules": ["query"], **others})


CONFIGS = {
    "LoRA": LoraConfig(r=3, target_modules=["query"]),
    "VeRA": VeraConfig(r=5, target_modules=["query"]),
    "C3A": C3AConfig(block_size=4, target_modules=["query"]),
    "FourierFT": FourierFTConfig(n_frequency=20, target_modules=["query"]),
    "LoKr": LoKrConfig(r=2, alpha=2, decompose_both=True, decompose_factor=3, target_modules=["query"]),
    "KronA": LoKrConfig(r=99, decompose_factor=3, target_modules=["query"]),
    "KAdaptation": KadaptationConfig(n=3, r=1, target_modules=["query"]),
    "KAdaptation, rank 2": KadaptationConfig(n=2, r=2, target_modules=["query"]),
    "factors": dense(),
    "Kronecker": dense(rank_shape=(2, 1), separation_rank=2, in_shape=(4, 3), out_shape=(3, 4)),
    "Kronecker, one term": dense(rank_shape=(2, 2), separation_rank=1, in_shape=(4, 3), out_shape=(3, 4)),
    "core": dense(train="core"),
    "diagonal core": dense(train="core", core="diagonal"),
    "core and frames": dense(train="all"),
    "diagonal core and frames": dense(train="all", core="diagonal"),
    "shared core": dense(train="core", share="layers"),
    "shared core and frames": dense(train="all", share="layers"),
    "shared diagonal core and frames": dense(train="all", core="diagonal", share="layers"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_the_rank_of_the_jacobian(name):
    torch.manual_seed(0)
    model = get_peft_model(Pair(), CONFIGS[name]).double()
    trained = [value for value in model.parameters() if value.requires_grad]
    for value in trained:
        nn.init.normal_(value)
    outputs = model(torch.eye(WIDTH, dtype=torch.double)).flatten()
    rows = [torch.autograd.grad(output, trained, retain_graph=True, allow_unused=True) for output in outputs]
    jacobian = [[torch.zeros_like(v) if g is None else g for v, g in zip(trained, row, strict=True)] for row in rows]
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in jacobian])
    count = sum(value.numel() for value in trained)
    assert degrees_of_freedom(model, count) == int(torch.linalg.matrix_rank(flat, rtol=1e-9))


def test_where_there_is_no_rule_there_is_no_number():
    model = get_peft_model(Pair(), UniLoraConfig(r=2, theta_d_length=20, target_modules=["query"]))
    assert degrees_of_freedom(model, 20) is None
    assert degrees_of_freedom(get_peft_model(Pair(), LoraConfig(target_modules=["query"], use_dora=True)), 20) is None
