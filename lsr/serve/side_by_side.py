"""Train adapters of a bank side by side: one pass over mixed batches, each with the steps that it would take alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.serve.file import HEADS
from lsr.serve.layer import SCALING
from lsr.serve.stack import Stack
from lsr.tuner.mistakes import InputError


class SideBySide:
    """The training of some adapters of a bank. Use it in a `with` block; at its end each has its best values.

    An adapter's gradient is that of the mean loss over its own rows of the batch, clipped to `largest_norm` on its own,
    and AdamW leaves it and its moments alone in steps without one of its rows. So it takes the steps that it would take
    alone, but for rounding, whatever the others are, and stops when no batch has rows of it any more. There is no
    dropout. Nothing else may change the bank meanwhile.

    Raises:
        InputError: if the bank has no such adapter, or does not store adapters in float32.
    """

    def __init__(
        self,
        bank: Any,  # an AdapterBank
        names: Iterable[str],
        *,
        rate: float,
        head_rate: float,
        weight_decay: float = 0.0,
        largest_norm: float = 1.0,
    ) -> None:
        if bank.shared.precision != "float32":
            raise InputError(f"a bank in {bank.shared.precision} cannot be trained; needed: precision='float32'")
        self.bank, self.largest_norm = bank, largest_norm
        self._places = {name: bank.place(name) for name in names}
        self.best: dict[str, float] = {}  # score of each
        self._kept: dict[str, dict[Stack, Tensor]] = {}  # the best values
        trained = {name: stack for name, stack in bank.stacks().items() if not name.endswith(SCALING)}
        rates = {stack: head_rate if name.startswith(HEADS) else rate for name, stack in trained.items()}
        self._values = {
            name: {stack: nn.Parameter(rows) for stack in rates if len(rows := stack.rows(place))}
            for name, place in self._places.items()
        }
        values = {stack: [its[stack] for its in self._values.values() if stack in its] for stack in rates}
        groups = [{"params": values[stack], "rate": rates[stack]} for stack in rates]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)

    def __enter__(self) -> Self:
        self.bank.shared.one_thread.acquire()
        for name, place in self._places.items():
            for stack, values in self._values[name].items():
                stack.trained[place] = values
        return self

    def __exit__(self, *_: object) -> None:
        for name, place in self._places.items():
            for stack, values in self._kept.get(name, self._values[name]).items():
                stack.put(place, values)
                del stack.trained[place]
        self.bank.shared.one_thread.release()

    def step(self, batch: Mapping[str, Any], names: Sequence[str], share: float = 1.0) -> dict[str, float]:
        """Take a step with a batch with labels, whose rows name their adapters; return the mean loss of each.

        `share` scales the learning rates, as a schedule does. Adapters that are not trained are not changed.

        Raises:
            ValueError: if there are no labels, or not one name per row.
        """
        inputs = dict(batch)
        labels: Tensor = inputs.pop("labels", torch.empty(0))
        logits: Tensor = self.bank(**inputs, adapter_names=names).logits
        if logits.dim() != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f"one label per row is needed, got {tuple(labels.shape)}, logits {tuple(logits.shape)}")
        means = dict[str, Tensor]()
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            own, wanted = logits[rows, : self.bank.outputs(name)], labels[rows]
            is_number = own.shape[1] == 1
            means[name] = F.mse_loss(own[:, 0], wanted.to(own)) if is_number else F.cross_entropy(own, wanted.long())
        trained = [name for name in means if name in self._values]
        if trained:
            torch.stack([means[name] for name in trained]).sum().backward()  # no gradient depends on how many there are
        for name in trained:
            nn.utils.clip_grad_norm_(self._values[name].values(), self.largest_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = share * group["rate"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {name: float(mean.detach()) for name, mean in means.items()}

    def judge(self, scores: Mapping[str, float]) -> None:
        """Keep the values of adapters that have their best score so far; higher is better."""
        for name in [name for name in self._values if name in scores]:
            if scores[name] > self.best.get(name, -torch.inf):
                self.best[name] = scores[name]
                self._kept[name] = {stack: values.detach().clone() for stack, values in self._values[name].items()}
