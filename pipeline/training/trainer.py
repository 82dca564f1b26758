"""transformers' Trainer, looking at the validation split without the adapter's cost."""

from typing import Any, cast

from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

from pipeline.methods import adapters


class MergingTrainer(Trainer):
    """Evaluates with the adapter merged. In bf16 and fp16 it does not: rounding the sum would lose a small update.

    It looks at examples of like length together, and with `keeps_order` in their order: whoever scores groups of them
    knows them by their positions.
    """

    def __init__(self, *args: Any, keeps_order: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keeps_order = keeps_order

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        return SequentialSampler(eval_dataset) if self._keeps_order else super()._get_eval_sampler(eval_dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the Trainer's metrics; the model is then as it was, bit for bit."""
        if self.args.bf16 or self.args.fp16:
            return super().evaluate(*args, **kwargs)
        with adapters.merged(cast("nn.Module", self.model)):
            return super().evaluate(*args, **kwargs)
