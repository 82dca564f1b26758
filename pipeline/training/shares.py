"""Training in several processes: each reads every batch and computes its share of the rows.

Batches and their order are those of a single process, and sums over rows differ only by rounding. So the loss curve and
the trained model do not depend on the number of processes. On accelerators dropout differs; see noise.py.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from pipeline import ranks
from pipeline.core.errors import UserError
from pipeline.training.noise import NoiseOfWholeBatch
from pipeline.training.trainer import MergingTrainer


class SharingTrainer(MergingTrainer):
    """Trains and evaluates together with other processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.world_size != ranks.size():
            raise UserError(
                f"train: the launcher says {ranks.SIZE}={ranks.size()}, but {self.args.world_size} processes train; "
                "use torchrun or accelerate launch"
            )
        self.model_accepts_loss_kwargs = False  # so that the loss is the mean over rows, which `compute_loss` weights
        self.is_noise_shared = self.args.device.type == "cpu" and not self.args.torch_compile

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return whole batches, in the order drawn by the first process."""
        sampler = _OneOrder(self._get_train_sampler(), self.args.device, self.is_noise_shared)
        return self._batches(self.train_dataset, sampler, self.args.train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return whole batches, in a fixed order."""
        split = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._batches(split, self._get_eval_sampler(split), self.args.eval_batch_size)

    def _batches(self, split: Dataset, sampler: Any, size: int) -> DataLoader[Any]:
        return DataLoader(
            self._remove_unused_columns(split),
            batch_size=size,
            sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of this process's rows, so that the mean over processes is the mean over the batch.

        If there are fewer rows than processes, some compute a row that is not theirs, with weight zero.
        """
        rows = torch.arange(len(inputs["labels"]), device=inputs["labels"].device)
        own = rows[ranks.rank() :: ranks.size()]
        taken = own if len(own) else rows[:1]
        with NoiseOfWholeBatch(len(rows), taken) if self.is_noise_shared else nullcontext():
            loss = super().compute_loss(model, _taken(inputs, taken))
        return cast("Tensor", loss) * (len(own) * ranks.size() / len(rows))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the Trainer's metrics on the whole split, the same in all processes."""
        self.gather_function = _as_it_is  # the Trainer forgets it after each evaluation
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, logits and labels of a whole batch, of which every process computes equally many rows."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        each = -(-len(labels) // ranks.size())
        own = (torch.arange(each, device=labels.device) * ranks.size() + ranks.rank()) % len(labels)
        with torch.no_grad():
            found = self.accelerator.gather(model(**_taken(inputs, own)).logits)
        logits = found.unflatten(0, (ranks.size(), each)).transpose(0, 1).flatten(0, 1)[: len(labels)]
        loss = F.mse_loss(logits[:, 0], labels) if labels.is_floating_point() else F.cross_entropy(logits, labels)
        return loss, logits, labels


class _OneOrder(Sampler[int]):
    """The order drawn by the first process, for all processes; then sets a common random state, or one per process.

    So the draws of the other processes follow from those of the first, and no checkpoint needs to contain them.
    """

    def __init__(self, sampler: Any, device: torch.device, is_noise_shared: bool) -> None:
        self.sampler, self.device, self.is_noise_shared = sampler, device, is_noise_shared

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.sampler) if ranks.is_first() else [0] * len(self)
        order = self._from_first(torch.tensor(drawn)).tolist()
        state = self._from_first(torch.get_rng_state())
        torch.set_rng_state(state)
        if not self.is_noise_shared and not ranks.is_first():
            torch.manual_seed(int(torch.randint(2**62, ())) + ranks.rank())
        return iter(order)

    def _from_first(self, value: Tensor) -> Tensor:
        value = value.to(self.device)
        distributed.broadcast(value, src=0)
        return value.cpu()


def _taken(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in inputs.items()}


def _as_it_is(value: Tensor) -> Tensor:
    return value
