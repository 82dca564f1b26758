"""transformers' Trainer, evaluating on the validation split without the cost of the adapter."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline.methods import adapters
from pipeline.training import emulated
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.rounded import RoundedWeights


class MergingTrainer(Trainer):
    """Evaluates with the adapter merged, except in bf16 and fp16, where rounding the sum would lose a small update.

    It batches examples of similar length, or with `keeps_order` keeps their order, because groups that are scored
    together are known by their positions.
    """

    def __init__(self, *args: Any, keeps_order: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keeps_order = keeps_order
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        self._weights = RoundedWeights(cast("Any", self.model), dtype) if dtype else None
        may_emulate = self.args.bf16 and self.args.device.type == "cpu" and not self.args.torch_compile
        self._emulates = may_emulate and emulated.is_needed()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer does."""
        if self.args.device.type == "cpu":
            keep_freed_memory()
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of a batch after its backward pass; frozen weights are already rounded."""
        with self._weights.applied() if self._weights else nullcontext(), self._products():
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the Trainer does: loss, logits and labels of a batch."""
        with self._products():
            return super().prediction_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the Trainer's metrics; the model is unchanged afterwards, bit for bit."""
        if self.args.bf16 or self.args.fp16:
            return super().evaluate(*args, **kwargs)
        with adapters.merged(cast("nn.Module", self.model)):
            return super().evaluate(*args, **kwargs)

    def _products(self) -> AbstractContextManager[Any]:
        """Return a context in which products in bf16 are fast; compiled code has its own."""
        return emulated.EmulatedBf16() if self._emulates else nullcontext()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        """Return the Trainer's sampler."""
        return _with_lengths_in_memory(super()._get_train_sampler(*args, **kwargs))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        """Return the Trainer's sampler, or a sequential one."""
        if self._keeps_order:
            return SequentialSampler(eval_dataset)
        return _with_lengths_in_memory(super()._get_eval_sampler(eval_dataset))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state of the first process, under the names that a single process and several look for."""
        if not self.args.should_save:
            return
        super()._save_rng_state(output_dir)
        alone, first = Path(output_dir, "rng_state.pth"), Path(output_dir, "rng_state_0.pth")
        shutil.copyfile(*((alone, first) if alone.exists() else (first, alone)))


def _with_lengths_in_memory(sampler: Sampler[int] | None) -> Sampler[int] | None:
    """Turn the lengths of a sampler into a list: reading a single one from a table takes as long as reading a row."""
    if isinstance(sampler, LengthGroupedSampler):
        sampler.lengths = sampler.lengths[:]
    return sampler
