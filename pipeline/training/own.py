"""An adapter of its own for each tenant, trained side by side on top of what all share, and kept where it helps."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from pipeline import evaluation
from pipeline.core import console
from pipeline.methods import banks
from pipeline.methods.device import device_of
from pipeline.params import TrainView
from pipeline.tasks.task import TENANT
from pipeline.tasks.tenants import TenantsTask


def trained(
    bank: Any, view: TrainView, task: TenantsTask, splits: Mapping[str, Dataset], collate: Any
) -> dict[str, Any]:
    """Return the Contents, a LoRA and a head, of each tenant whose validation score is better with a LoRA of its own.

    It is added to what all share in the AdapterBank, which is changed, and starts from the tenant's head.
    """
    where, draws, rank = device_of(bank), torch.Generator().manual_seed(view.seed), view.tenants.own_rank
    bank.add_all(banks.with_fresh(bank, view.base_model, rank, draws), replace=True)
    model, size, rows = banks.Served(bank, list(task.tenants)), view.train.batch_size, len(splits["train"])
    steps, step = view.train.epochs * math.ceil(rows / size), 0

    def scores() -> dict[str, float]:
        outputs = evaluation.outputs(task, model, splits["validation"], collate, 4 * size)
        return task.by_tenant(evaluation.outcome(outputs, splits["validation"]))

    rate, head_rate = view.tenants.learning_rate, view.train.head_learning_rate
    with (
        bank.side_by_side(rate=rate, head_rate=head_rate, weight_decay=view.train.weight_decay) as training,
        console.progress("own adapters", steps, "steps") as advance,
    ):
        training.judge(before := scores())
        for _ in range(view.train.epochs):
            for places in torch.randperm(rows, generator=draws).split(size):
                batch = collate(splits["train"][places.tolist()])
                names = [model.names[number] for number in batch.pop(TENANT).tolist()]
                with torch.autocast(where.type, dtype=torch.bfloat16, enabled=view.train.precision == "bf16"):
                    training.step(batch, names, share=1 - step / steps)
                step += 1
                advance(1)
            training.judge(scores())
    return {name: bank.contents(name) for name, score in before.items() if training.best[name] > score}
