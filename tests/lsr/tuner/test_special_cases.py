"""Members of the family that others have written down: each equals its formula, in float64."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.func import functional_call
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.initialize import initialize_group
from lsr.tuner.layer import find_lsr_layers
from tests.lsr.layers import adapt, base, normal
from tests.old_tiny.models import LABELS, logits, tiny, tokens
from tests.old_tiny.training import loss, trainable

STEPS = 5


def lsr(name="bert", **fields):
    config = {"rank_shape": (4,), "alpha": 7, "seed": 0, **fields}
    return get_peft_model(tiny(name).double(), LsrConfig(**config), autocast_adapter_dtype=False)


def adamw(model):
    return torch.optim.AdamW(trainable(model).values(), lr=0.02, weight_decay=0.1)


def step(model, optimizer):
    optimizer.zero_grad()
    now = loss(model)
    now.backward()
    optimizer.step()
    return float(now)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-causal"])
def test_with_one_factor_a_side_it_is_lora_step_for_step(name):
    """Reference: PEFT's LoRA with the same numbers, Hu et al. 2021 (arXiv 2106.09685)."""
    task = {"task_type": "CAUSAL_LM" if name.endswith("causal") else "SEQ_CLS"}
    ours = lsr(name, **task)
    targets = sorted({layer.rpartition(".")[2] for layer in find_lsr_layers(ours)})
    config = LoraConfig(r=4, lora_alpha=7, target_modules=targets, **task)
    theirs = get_peft_model(tiny(name).double(), config, autocast_adapter_dtype=False)
    theirs = theirs.double()
    pairs = []
    for layer_name, layer in find_lsr_layers(ours).items():
        adapter = layer.adapter("default")
        lora = theirs.base_model.model.get_submodule(layer_name)
        own = (adapter.factor_A1, adapter.factor_B1)
        for factor, other in zip(own, (lora.lora_A["default"].weight, lora.lora_B["default"].weight), strict=True):
            factor.data.copy_(other[None])
            pairs.append((factor, other))
    heads = [(p, trainable(theirs)[name]) for name, p in trainable(ours).items() if "modules_to_save" in name]
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    optimizers = [adamw(model) for model in (ours, theirs)]
    for _ in range(STEPS):
        one, two = (step(model, optimizer) for model, optimizer in zip((ours, theirs), optimizers, strict=True))
        assert one == pytest.approx(two, rel=1e-9)
    for mine, other in (*pairs, *heads):
        assert_close(mine.reshape(other.shape), other, rtol=1e-7, atol=1e-9)
    assert all(mine.any() for mine, _ in pairs)


def test_the_usual_configuration_has_the_parameters_of_the_paper():
    """Li & Sarwate 2025 (arXiv 2502.13568): 3,584 for a 768 x 768 layer with ranks (2, 2) and 16 terms."""
    layer = adapt(base(768, 768, dtype=torch.float32), rank_shape=(2, 2), separation_rank=None)
    assert sum(parameter.numel() for parameter in layer.adapter("default").parameters()) == 3584


@pytest.mark.parametrize("transposed", [False, True])
def test_a_core_between_singular_vectors_is_lora_xs(transposed):
    """W + c U_r S_r R V_r^T (Bałazy et al. 2024, arXiv 2405.17604): here S_r is in the core."""
    layer = adapt(base(9, 12, transposed=transposed), rank_shape=(3,), separation_rank=None, alpha=6, train="core")
    fields = {"rank_shape": (3,), "separation_rank": None, "train": "core", "init_weights": "principal"}
    initialize_group([layer], "default", LsrConfig(**fields, alpha=6), "principal")
    adapter = layer.adapter("default")
    weight = layer.base_matrix().numpy()
    u, values, vt = np.linalg.svd(weight, full_matrices=False)
    u = u[:, :3]
    values = values[:3]
    vt = vt[:3]
    a, b = adapter.matrices()
    signs = [np.diag(np.sign(np.diag(product))) for product in (b.numpy().T @ u, vt @ a.numpy().T)]
    assert_close(a, torch.from_numpy(signs[1] @ vt))
    assert_close(b, torch.from_numpy(u @ signs[0]))
    theirs = normal(3, 3).numpy()
    adapter.core.data = torch.from_numpy(signs[0] @ np.diag(values) @ theirs @ signs[1])
    x = normal(5, 9).numpy()
    expected = x @ (weight + 6 / 3 * u @ np.diag(values) @ theirs @ vt).T + layer.get_base_layer().bias.numpy()
    assert_close(layer(torch.from_numpy(x)), torch.from_numpy(expected))


def test_shared_layers_are_lotr_and_have_its_gradients():
    """ΔW_l = c B R_l A (Bershatsky et al. 2024, arXiv 2402.01376), with gradients from torch's autograd."""
    model = lsr(share="layers", train="all", init_weights=False)
    plain = tiny("bert").double()
    actual = {}
    weights = {}
    factors = {}  # factors by who holds them: leaves of the plain model
    for position, parameter in enumerate(trainable(model).values()):
        parameter.data += 0.1 * normal(*parameter.shape) * (1 + position % 3)
    for name, layer in find_lsr_layers(model).items():
        adapter = layer.adapter("default")
        holder = adapter.owner or adapter
        if holder not in factors:
            sides = (holder.factor_A1[0], holder.factor_B1[0])
            factors[holder] = [side.detach().clone().requires_grad_() for side in sides]
        a, b = factors[holder]
        core = adapter.core.detach().clone().requires_grad_()
        actual[name] = (adapter.core, core)
        weights[f"{name}.weight"] = plain.get_submodule(name).weight + adapter.scaling * b @ core @ a
    assert len(factors) == 2  # queries and values
    expected = functional_call(plain, weights, kwargs={**tokens(), "labels": torch.arange(4) % LABELS})
    assert_close(logits(model), expected.logits)
    loss(model).backward()
    expected.loss.backward()
    for holder, (a, b) in factors.items():
        assert_close(holder.factor_A1.grad[0], a.grad)
        assert_close(holder.factor_B1.grad[0], b.grad)
    for ours, core in actual.values():
        assert core.grad.any()
        assert_close(ours.grad, core.grad)
