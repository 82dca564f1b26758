"""What a user is warned of once, by `warnings.warn`: more parameters than LoRA has, and examples that never came."""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lsr.tuner.config import LsrConfig
from lsr.tuner.start import layers_of


def warn_of_size(model: nn.Module, adapter_name: str) -> None:
    """Warn where a layer trains more factors than LoRA of the same rank does, which can do all that it can."""
    larger = {}
    for name, layer in layers_of(model, adapter_name).items():
        adapter = layer.adapter(adapter_name)
        core = adapter.core.numel() if adapter.has_core else 0
        factors = layer.sizes(adapter_name).trained - core
        lora = adapter.form.rank * (layer.in_features + layer.out_features)
        if factors > lora:
            larger[name] = factors, lora, adapter.form.rank
    if larger:
        name, (factors, lora, rank) = max(larger.items(), key=lambda found: found[1][0] / found[1][1])
        warnings.warn(
            f"LSR: {len(larger)} layers have more parameters than LoRA of their rank, {name} the most: {factors:,}, "
            f"and LoRA r = {rank} has {lora:,}; choose a smaller separation_rank, or LoRA",
            stacklevel=2,
        )


def remind_of_examples(model: nn.Module, config: LsrConfig) -> None:
    """Have the first pass in training warn, if the adapter has not started from examples by then."""
    config.awaits_examples = True
    reminder = _Reminder(config)
    reminder.handle = model.register_forward_pre_hook(reminder)


@dataclass(eq=False)
class _Reminder:
    """A hook before a model's forward pass, which is there for one pass in training."""

    config: LsrConfig
    handle: RemovableHandle | None = None

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        if self.config.reads_examples or (not model.training and self.config.awaits_examples):
            return
        if self.handle is not None:
            self.handle.remove()
        if self.config.awaits_examples:
            self.config.awaits_examples = False
            warnings.warn(
                f"LSR: init_weights={self.config.start!r} reads examples, and has been given none: training begins "
                "from random factors; call lsr.start_from_examples(model, batches) first",
                stacklevel=2,
            )
