"""Adapters on tiny models: random values for them, a few steps of training, and which tensors are theirs."""

import re
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tests.old_tiny.models import LABELS, tokens


def stir(model: Any, seed: int = 0) -> Any:
    """Perturb every trainable parameter; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


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
    losses = []
    moved = dict.fromkeys(trainable(model), False)
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


def is_factor(name: str) -> bool:
    """Return whether a parameter or buffer belongs to an adapter's layer."""
    return re.search(r"\.(lsr|lora|lokr|vera)_", name) is not None
