"""Train adapters of a bank side by side: one pass over mixed batches, each with the steps that it would take alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.loading.files import InputError
from lsr.serve.stack import Stack

if TYPE_CHECKING:
    from lsr.serve.bank import AdapterBank

BETAS, EPSILON = (0.9, 0.999), 1e-8


class _Trained(NamedTuple):
    """A stack with AdamW's state of each row, and the place whose adapter has it; 0 if it is not trained."""

    stack: Stack
    rate: float
    owners: Tensor  # (rows,)
    first: Tensor  # moments, (rows, width)
    second: Tensor


class SideBySide:
    """The training of some adapters of a bank. Use it in a `with` block, at whose end each has its best values.

    An adapter's gradient is that of the mean loss over its own rows of the batch, clipped to `largest_norm` on its own,
    and its state of AdamW stands still in steps without one of its rows. So it takes the steps that it would take
    alone, but for rounding, whatever the others are. There is no dropout. Nothing else may change the bank meanwhile.

    Raises:
        InputError: if the bank has no such adapter, or stores adapters in few bits.
    """

    def __init__(
        self,
        bank: "AdapterBank",
        names: Iterable[str],
        *,
        rate: float,
        head_rate: float,
        weight_decay: float = 0.0,
        largest_norm: float = 1.0,
        patience: int | None = None,
    ) -> None:
        self.bank, self.patience = bank, patience
        self.weight_decay, self.largest_norm = weight_decay, largest_norm
        self.going = {name: bank.place(name) for name in names}
        self.steps = torch.zeros(1 + max(self.going.values(), default=0), dtype=torch.int64)
        self.best: dict[str, float] = {}
        self._since = dict.fromkeys(self.going, 0)  # judgements since the best one
        self._kept: dict[str, list[Tensor]] = {}
        if bank.precision != "float32":
            raise InputError(f"a bank in {bank.precision} cannot be trained; needed: precision='float32'")
        self._trained = [
            self._begin(stack, of_kind)
            for modules, of_kind in ((bank._layers, rate), (bank._heads, head_rate))
            for module in modules.values()
            for stack in module.stacks.values()
            if not stack.is_exact
        ]

    def _begin(self, stack: Stack, rate: float) -> _Trained:
        owners = torch.zeros(len(stack.values), dtype=torch.int64, device=stack.values.device)
        for place in self.going.values():
            owners[stack.own(place)] = place
        return _Trained(stack, rate, owners, torch.zeros_like(stack.values), torch.zeros_like(stack.values))

    def __enter__(self) -> Self:
        self.bank._rows.one_thread.acquire()
        for one in self._trained:
            one.stack.values.requires_grad_()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._trained:
            one.stack.values.requires_grad_(False).grad = None
        for name, kept in self._kept.items():
            for one, values in zip(self._trained, kept, strict=True):
                one.stack.values[one.stack.own(self.bank.place(name))] = values
        self.bank._rows.one_thread.release()

    def step(self, batch: Mapping[str, Any], names: Sequence[str], share: float = 1.0) -> dict[str, float]:
        """Take a step with a batch with labels, whose rows name their adapters; return the mean loss of each.

        `share` scales the learning rates, as a schedule does. Adapters that are not trained are not changed.

        Raises:
            ValueError: if there are no labels, or not one name per row.
        """
        labels: Tensor = batch["labels"]
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = self.bank(**inputs, adapter_names=names).logits
        if logits.dim() != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f"one label per row is needed, got {tuple(labels.shape)}, logits {tuple(logits.shape)}")
        means = dict[str, Tensor]()
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            own, wanted = logits[rows, : self.bank.outputs(name)], labels[rows]
            is_number = own.shape[1] == 1
            means[name] = F.mse_loss(own[:, 0], wanted.to(own)) if is_number else F.cross_entropy(own, wanted.long())
        torch.stack(list(means.values())).sum().backward()  # no adapter's gradient depends on how many there are
        self._update([self.going[name] for name in means if name in self.going], share)
        return {name: float(mean.detach()) for name, mean in means.items()}

    @torch.no_grad()
    def _update(self, places: Sequence[int], share: float) -> None:
        self.steps[places] += 1
        changed = []  # the rows with a gradient
        squares = torch.zeros(len(self.steps), dtype=torch.float64)
        for one in self._trained:
            gradient, one.stack.values.grad = one.stack.values.grad, None
            if gradient is None:
                continue
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            is_own = one.owners[rows] > 0
            rows, values = rows[is_own], values[is_own]
            squares.index_add_(0, one.owners[rows].cpu(), values.double().square().sum(dim=1).cpu())
            changed.append((one, rows, values))
        clips = (self.largest_norm / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for one, rows, values in changed:
            places_of, like = one.owners[rows].cpu(), values
            steps, clip = (each[places_of][:, None].to(like) for each in (self.steps, clips))
            first = one.first[rows].lerp(values * clip, 1 - BETAS[0])
            second = one.second[rows].lerp((values * clip).square(), 1 - BETAS[1])
            one.first[rows], one.second[rows] = first, second
            denominator = (second / (1 - BETAS[1] ** steps)).sqrt() + EPSILON
            rate = share * one.rate
            one.stack.values[rows] = one.stack.values[rows] * (1 - rate * self.weight_decay) - rate * first / (
                (1 - BETAS[0] ** steps) * denominator
            )

    @torch.no_grad()
    def judge(self, scores: Mapping[str, float]) -> list[str]:
        """Keep the values of adapters that have their best score, higher is better; return the names that go on.

        An adapter without a better one for `patience` judgements stops: later steps leave it as it is.
        """
        for name in [name for name in scores if name in self.going]:
            if scores[name] > self.best.get(name, -torch.inf):
                self.best[name], self._since[name] = scores[name], 0
                self._kept[name] = [one.stack.values[one.stack.own(self.going[name])].clone() for one in self._trained]
                continue
            self._since[name] += 1
            if self.patience is not None and self._since[name] >= self.patience:
                place = self.going.pop(name)
                for one in self._trained:
                    one.owners[one.owners == place] = 0
        return list(self.going)
