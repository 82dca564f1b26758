"""Helpers of the probes: training, and comparisons that raise the reason if they fail."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tests.capabilities.models import LABELS, logits, tiny, tokens

TOLERANCE = 1e-5


def stir(model: Any, seed: int = 0) -> Any:
    """Perturb every trainable parameter; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(model: nn.Module) -> dict[str, Any]:
    """Return the adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def loss(model: Any) -> Tensor:
    """Return the loss on `tokens()` with fixed labels."""
    batch = tokens()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    is_causal = type(base).__name__.endswith(("LMHeadModel", "ForCausalLM"))
    return model(**batch, labels=batch["input_ids"] if is_causal else torch.arange(4) % LABELS).loss


def train(model: Any, steps: int = 2, learning_rate: float = 0.01) -> tuple[list[float], dict[str, bool]]:
    """Fit the fixed labels; return the losses, and for each trainable tensor whether it ever had a gradient."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=learning_rate)
    losses, moved = [], dict.fromkeys(trainable(model), False)
    for _ in range(steps):
        now = loss(model)
        optimizer.zero_grad()
        now.backward()
        for name, parameter in trainable(model).items():
            moved[name] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        losses.append(now.item())
    model.eval()
    return losses, moved


def check(holds: bool, reason: str) -> None:
    """Check that something holds; if not, it is an AssertionError with the reason."""
    assert holds, reason


def same(one: Tensor, other: Tensor, reason: str) -> None:
    """Check that two tensors are equal bit for bit."""
    check(torch.equal(one, other), reason)


def rejects(act: Callable[[], object], reason: str) -> None:
    """Check that a call raises a ValueError."""
    try:
        act()
    except ValueError:
        return
    check(False, reason)


def reloaded(model: Any, base: str, folder: Path, what: str = "a loaded adapter", **how: Any) -> Any:
    """Save an adapter, load it onto a new model, check that both compute the same, and return the loaded one."""
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(tiny(base), str(folder), **how)
    same(logits(loaded.eval()), logits(model), f"{what} computes something else")
    return loaded


def near(one: Tensor, other: Tensor, reason: str, tolerance: float = TOLERANCE) -> None:
    """Check that two tensors differ at most by rounding."""
    check(torch.allclose(one, other, atol=tolerance, rtol=tolerance), reason)


def far(one: Tensor, other: Tensor) -> None:
    """Check that an adapter has an effect, because comparing equal outputs would prove nothing."""
    check(not torch.allclose(one, other, atol=1e-4), "the adapter does nothing here")


def is_factor(name: str) -> bool:
    """Return whether a parameter or buffer belongs to an adapter's layer."""
    return re.search(r"\.(lsr|lora|lokr|vera)_", name) is not None


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the base model's state, by name in the base model, without heads."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value.clone()
        for name, value in model.state_dict().items()
        if not is_factor(name) and "modules_to_save" not in name
    }


def same_base(before: Mapping[str, Tensor], model: nn.Module, reason: str) -> None:
    """Check that the base weights are unchanged."""
    after = base_weights(model)
    for name, value in before.items():
        same(after[name], value, reason)
