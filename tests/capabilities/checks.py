"""Comparisons of the probes, which raise the reason if they fail."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tests.old_tiny.models import logits, tiny
from tests.old_tiny.training import is_factor

TOLERANCE = 1e-5


def layers(model: nn.Module) -> dict[str, Any]:
    """Return the adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def check(holds: bool, reason: str) -> None:
    """Check that something holds; if not, it is an AssertionError with the reason."""
    assert holds, reason


def same(actual: Tensor, expected: Tensor, reason: str) -> None:
    """Check that two tensors are equal bit for bit."""
    check(torch.equal(actual, expected), reason)


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


def near(actual: Tensor, expected: Tensor, reason: str, tolerance: float = TOLERANCE) -> None:
    """Check that two tensors differ at most by rounding."""
    check(torch.allclose(actual, expected, atol=tolerance, rtol=tolerance), reason)


def far(actual: Tensor, other: Tensor) -> None:
    """Check that an adapter has an effect, because comparing equal outputs would prove nothing."""
    check(not torch.allclose(actual, other, atol=1e-4), "the adapter does nothing here")


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
