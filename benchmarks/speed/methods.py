"""The methods to compare: a frozen model as it is, and adapted by each method with the defaults of its library."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from lsr import LsrConfig
from lsr.tuner.linear import LsrLinear

Targets = Sequence[str] | str

FROZEN, PEER, SMALLEST_PEER, TEXTBOOK, OURS = "frozen", "LoRA r=8", "LoRA r=1", "LSR, textbook", "LSR r=4 s=16"
CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    OURS: partial(LsrConfig, rank_shape=(2, 2), separation_rank=16),
    "LSR r=4 s=1": partial(LsrConfig, rank_shape=(2, 2), separation_rank=1),
    SMALLEST_PEER: partial(LoraConfig, r=1),
    "LoRA r=4": partial(LoraConfig, r=4),
    PEER: partial(LoraConfig, r=8),
    "LoKr r=8": partial(LoKrConfig, r=8),
    "VeRA r=256": partial(VeraConfig, r=256),
}
METHODS = (FROZEN, *CONFIGS, TEXTBOOK)


class TextbookLsr(nn.Module):
    """LSR as in its formula: a sum of Kronecker products, differentiated by autograd."""

    def __init__(self, layer: LsrLinear) -> None:
        super().__init__()
        adapter = layer.adapter("default")
        a, b = adapter.factors()
        self.a, self.b = (nn.ParameterList(side) for side in (a, b))  # (s, r_i, n_i) each, (s, m_i, r_i) each
        self.base_layer, self.scaling = layer.get_base_layer(), adapter.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + scaling * B A x."""
        a, b = (
            torch.stack([torch.kron(one, two) for one, two in zip(*side, strict=True)]).sum(0)
            for side in (self.a, self.b)
        )
        result: Tensor = self.base_layer(x)
        low = x.to(a.dtype) @ a[:, : x.shape[-1]].T @ b[: result.shape[-1]].T
        return result + (self.scaling * low).to(x.dtype)


def adapted(model: nn.Module, method: str, targets: Targets) -> nn.Module:
    """Return the model with its own weights frozen and the targets adapted; the model is modified in place."""
    model.requires_grad_(False)
    if method == FROZEN:
        return model
    if method != TEXTBOOK:
        return get_peft_model(model, CONFIGS[method](target_modules=targets))
    adapted_model = get_peft_model(model, CONFIGS[OURS](target_modules=targets))
    for name, module in list(adapted_model.named_modules()):
        if isinstance(module, LsrLinear):
            parent, _, child = name.rpartition(".")
            setattr(adapted_model.get_submodule(parent), child, TextbookLsr(module))
    return adapted_model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
