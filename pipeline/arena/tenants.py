"""The bank of tenants after a training: their own adapters, if the method has some, and its sizes."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel

from lsr.loading.contents import Contents
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from pipeline.methods import adapters, banks
from pipeline.methods.adapter_task import AdapterTask
from pipeline.params import TrainView
from pipeline.tasks import TenantsTask
from pipeline.training import own


def bank_of(
    model: PeftModel, view: TrainView, task: TenantsTask, splits: Mapping[str, Dataset], collate: Any
) -> tuple[AdapterBank, dict[str, int]]:
    """Return the bank of a model that all tenants share, as the stage train makes it, in float32; and its sizes.

    These are fields of a record: of own adapters the parameters that are trained and those that are kept, and bytes.
    """
    trained = kept = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters.save_adapter(model, folder, view.base_model)
        AdapterTask.of(task, view.tokenize.max_length).write(folder)
        bank = banks.of_adapter(view.base_model, folder)
        if view.has_own_adapters:
            better = own.trained(banks.of_adapter(view.base_model, folder), view, task, splits, collate)
            fresh = banks.with_fresh(bank, view.base_model, view.tenants.own_rank, torch.Generator())
            trained, kept = _parameters(fresh), _parameters(better)
            bank.add_all(better, replace=True)
        bank.save(folder / "bank")
        files = {file.name: file.stat().st_size for file in (folder / "bank").rglob("*.safetensors")}
    sizes = {"file_bytes": sum(files.values()), "tenant_bytes": files[FILE] // len(task.tenants)}
    return bank, sizes | {"trained": trained, "stored": kept}


def _parameters(adapters: Mapping[str, Contents]) -> int:
    """Return how many numbers the updates of own adapters have."""
    frames = (update.frames for one in adapters.values() for update in one.updates.values())
    return sum(side.numel() for its in frames for side in (its.a, its.b))
