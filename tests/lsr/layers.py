"""Matrices and single layers, always the same, for tests that need no model."""

import torch
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from lsr import LsrConfig
from lsr.tuner.forms import form_of
from lsr.tuner.initialize import initialize_group
from lsr.tuner.layer import LsrLinear, find_lsr_layers

SEEDS = st.integers(0, 999)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decaying(rows, columns, seed=0):
    """A weight with well separated singular values 1, 1/2, 1/3, ..."""
    count = min(rows, columns)
    left = torch.linalg.qr(normal(rows, count, seed=seed)).Q
    right = torch.linalg.qr(normal(columns, count, seed=seed + 1)).Q
    return (left / torch.arange(1, count + 1)) @ right.T


def base(n, m, *, bias=True, transposed=False, dtype=torch.float64):
    """A frozen layer, the same for the same widths."""
    with torch.random.fork_rng():
        torch.manual_seed(n * 10 + m)
        layer = Conv1D(m, n) if transposed else nn.Linear(n, m, bias=bias)
        nn.init.normal_(layer.weight)
    return layer.to(dtype).requires_grad_(False)


def config(**fields):
    """A small configuration with both sides random."""
    usual = {"rank_shape": (2, 2), "separation_rank": 1, "alpha": 3, "seed": 0, "init_weights": False}
    return LsrConfig(**{**usual, **fields})


def adapt(layer, name="layer", **fields):
    """An LsrLinear with one adapter, both sides random unless said otherwise, in evaluation mode."""
    adapted = LsrLinear(layer, "default", name)
    add(adapted, "default", config(**fields))
    return adapted.eval()


def add(layer, adapter_name, config, word="random"):
    """Add an adapter of a configuration to an LsrLinear, initialized by the initialization of a name."""
    form = form_of(config, layer.layer_name, layer.in_features, layer.out_features)
    layer.update_layer(adapter_name, config, form)
    initialize_group([layer], adapter_name, config, word)


def adapters(model, name="default"):
    """The adapters of this name by the names of their layers."""
    return {key: layer.adapter(name) for key, layer in find_lsr_layers(model).items() if name in layer.lsr_adapters}
