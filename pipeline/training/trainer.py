"""transformers' Trainer, looking at the validation split without the adapter's cost."""

from typing import Any, cast

from torch import nn
from transformers import Trainer

from pipeline.methods import adapters


class MergingTrainer(Trainer):
    """Evaluates with the adapter merged. In bf16 and fp16 it does not: rounding the sum would lose a small update."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the Trainer's metrics; the model is then as it was, bit for bit."""
        if self.args.bf16 or self.args.fp16:
            return super().evaluate(*args, **kwargs)
        with adapters.merged(cast("nn.Module", self.model)):
            return super().evaluate(*args, **kwargs)
