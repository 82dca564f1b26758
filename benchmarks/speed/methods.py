"""The methods to compare: a frozen model as it is, and adapted by each method with the defaults of its library."""

from collections.abc import Callable, Sequence
from functools import partial

from peft import LoKrConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn

from lsr import LsrConfig

Targets = Sequence[str] | str

FROZEN, PEER, SMALLEST_PEER, OURS = "frozen", "LoRA r=8", "LoRA r=1", "LSR r=4 s=16"
CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    OURS: partial(LsrConfig, rank_shape=(2, 2), separation_rank=16),
    "LSR r=4 s=1": partial(LsrConfig, rank_shape=(2, 2), separation_rank=1),
    SMALLEST_PEER: partial(LoraConfig, r=1),
    "LoRA r=4": partial(LoraConfig, r=4),
    PEER: partial(LoraConfig, r=8),
    "LoKr r=8": partial(LoKrConfig, r=8),
    "VeRA r=256": partial(VeraConfig, r=256),
}
METHODS = (FROZEN, *CONFIGS)


def adapted(model: nn.Module, method: str, targets: Targets) -> nn.Module:
    """Return the model with its own weights frozen and the targets adapted; the model is modified in place."""
    model.requires_grad_(False)
    return model if method == FROZEN else get_peft_model(model, CONFIGS[method](target_modules=targets))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
