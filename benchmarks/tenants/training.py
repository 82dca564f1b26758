"""Train adapters of tenants: each its own, side by side, or one for all with heads of their own."""

import copy
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, set_seed

from examples.tenants import ROWS, Tenant, add, fit
from lsr import AdapterBank
from lsr.tuner.files import PREFIX, read_tensors
from pipeline.arena import machine

EPOCHS = 2
RATE, HEAD_RATE = 0.004, 0.005
HEAD = "classifier"


class Shop(NamedTuple):
    """What all trainings have in common."""

    base: Callable[[], PreTrainedModel]  # makes one with a fresh head
    tenants: Mapping[str, Tenant]
    collate: Any
    folder: Path  # for what is trained


class Trained(NamedTuple):
    """The adapters of all tenants, in a folder for each."""

    folder: str  # that holds those folders
    held_out: dict[str, float]  # accuracy by tenant, of the epoch that is kept
    seconds: float  # of the processor, for all tenants

    def of(self, tenant: str) -> Path:
        """Return the folder of a tenant's adapter."""
        return Path(self.folder, tenant)


def lora(rank: int) -> LoraConfig:
    """Return a LoRA on query and value layers, with the head."""
    return LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])


def own(
    shop: Shop,
    folder: Path,
    config: PeftConfig,
    factor: float,
    seed: int,
    *,
    epochs: int = EPOCHS,
    size: int = ROWS,
    after: Trained | None = None,
) -> Trained:
    """Train an adapter for each tenant, all side by side; `after` one for all, on top of it, from its heads.

    `factor` scales the learning rate of adapters; batches have `size` rows, of all tenants together.
    """
    set_seed(seed)
    begin, base = machine.clock(), base_after(shop, after)
    bank = AdapterBank(copy.deepcopy(base))
    for name, tenant in shop.tenants.items():
        start = copy.deepcopy(base)
        if after is not None:
            start.get_submodule(HEAD).load_state_dict(head_in(after.of(name)))
        add(bank, name, tenant.labels, start, config)
    rates = {"rate": RATE * factor, "head_rate": HEAD_RATE}
    best = fit(bank, shop.tenants, shop.collate, epochs=epochs, size=size, seed=seed, **rates)
    for name in shop.tenants:
        bank.write(name, folder / name, method=str(getattr(config.peft_type, "value", config.peft_type)))
    return Trained(str(folder), best, machine.clock() - begin)


def base_after(shop: Shop, after: Trained | None) -> PreTrainedModel:
    """Return the base model, with the LoRA of all tenants merged into it if there is one."""
    base = shop.base()
    if after is None:
        return base
    merged: Any = PeftModel.from_pretrained(base, str(after.of(next(iter(shop.tenants)))))
    return merged.merge_and_unload()


def head_in(folder: Path) -> dict[str, Tensor]:
    """Return the state of the head in an adapter's folder."""
    start = f"{PREFIX}{HEAD}."
    return {key.removeprefix(start): value for key, value in read_tensors(folder).items() if key.startswith(start)}


class Heads(nn.Module):
    """A head for each tenant, all with as many labels; each row of a batch has its tenant's."""

    def __init__(self, head: nn.Linear, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(count))
        self.rows = torch.zeros(0, dtype=torch.int64)  # the number of each row's tenant

    def forward(self, x: Tensor) -> Tensor:  # (rows, d) -> (rows, labels)
        """Apply to each row its head."""
        weights, biases = (torch.stack([getattr(one, name) for one in self.heads]) for name in ("weight", "bias"))
        return torch.einsum("rd,rld->rl", x, weights[self.rows]) + biases[self.rows]


def together(shop: Shop, folder: Path, factor: float, seed: int, rank: int = 8) -> Trained:
    """Train one LoRA for all tenants with a head for each, in the batches and steps of `own`.

    The folders have the same LoRA, each beside the head of its tenant.
    """
    set_seed(seed)
    begin, base, names = machine.clock(), shop.base(), list(shop.tenants)
    head = base.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)
    heads, config = Heads(head, len(names)), lora(rank)
    base.set_submodule(HEAD, heads)
    model: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=config.target_modules))
    adapter = [one for one in model.parameters() if one.requires_grad]
    groups = [
        {"params": adapter, "lr": RATE * factor},
        {"params": [*heads.requires_grad_().parameters()], "lr": HEAD_RATE},
    ]
    optimizer, order = torch.optim.AdamW(groups, weight_decay=0.0), random.Random(seed)  # noqa: S311
    rows = [(at, row) for at, tenant in enumerate(shop.tenants.values()) for row in tenant.train]
    steps = EPOCHS * math.ceil(len(rows) / ROWS)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    best, kept = dict[str, float](), dict[str, Tensor]()
    for _ in range(EPOCHS):
        order.shuffle(rows)
        for first in range(0, len(rows), ROWS):
            numbers, its = zip(*rows[first : first + ROWS], strict=True)
            _loss(model.train(), heads, torch.tensor(numbers), shop.collate(its)).backward()
            nn.utils.clip_grad_norm_([*adapter, *heads.parameters()], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
        said = {name: _accuracy(model.eval(), heads, at, shop) for at, name in enumerate(names)}
        if sum(said.values()) >= sum(best.values()):
            best, kept = said, {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(kept)
    state = get_peft_model_state_dict(model)
    for name, own_head in zip(names, heads.heads, strict=True):
        of_tenant: Any = get_peft_model(shop.base(), config)
        set_peft_model_state_dict(of_tenant, state | own_head.state_dict(prefix=f"{PREFIX}{HEAD}."))
        of_tenant.save_pretrained(str(folder / name))
    return Trained(str(folder), best, machine.clock() - begin)


def _loss(model: Any, heads: Heads, rows: Tensor, batch: Any) -> Tensor:
    """Return the mean of the tenants' mean losses."""
    labels, heads.rows = batch.pop("labels"), rows
    losses = F.cross_entropy(model(**batch).logits, labels, reduction="none")
    return torch.stack([losses[rows == one].mean() for one in rows.unique()]).mean()


@torch.no_grad()
def _accuracy(model: Any, heads: Heads, number: int, shop: Shop) -> float:
    rows = list(shop.tenants.values())[number].held_out
    batch = shop.collate(rows)
    labels, heads.rows = batch.pop("labels"), torch.full((len(rows),), number)
    return float((model(**batch).logits.argmax(dim=1) == labels).float().mean())
