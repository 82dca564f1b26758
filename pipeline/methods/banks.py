"""The bank of a multi-tenant data set: the shared adapter, and each tenant's rows of the head."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.init.passes import fit_head
from lsr.loading.adapters import load_onto
from lsr.loading.contents import Contents
from lsr.serve.bank import AdapterBank
from lsr.serve.group_names import name_group
from lsr.serve.shared_adapter import last_layer, split
from lsr.tuner.files import PREFIX, Files, adapter_folder
from pipeline.core import console
from pipeline.core.errors import UserError, as_user_error
from pipeline.data import base_models, tokens
from pipeline.methods import heads
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.heads import GroupHead
from pipeline.methods.label_units import standardize_numbers
from pipeline.params import PARAMS, FactorizeInitView, LsrParams, PeftParams, load_params
from pipeline.params.sources import HubModel, ModelEntry
from pipeline.tasks import Task

FITTED = 1024  # examples that fit the rows of new tenants
BATCH = 32  # examples of a batch


def base_of(entry: ModelEntry) -> str | None:
    """Return the folder of a bank's base model; None if its adapter names a repository."""
    return None if isinstance(entry.source, HubModel) else base_models.source(entry)[0]


def add_tenant_heads(base: PreTrainedModel, view: FactorizeInitView, task: Task) -> PeftModel:
    """Return a base model with an existing shared adapter and newly fitted head rows for the data's tenants.

    Raises:
        UserError: if the adapter is missing, or does not fit the base model.
    """
    where = f"{PARAMS}: tenants.shared_adapter: "
    with as_user_error(ValueError, before=where):
        shared_adapter, _ = split(adapter_folder(str(view.tenants.folder)))
        _check_type(view, shared_adapter)
    collate = task.head.collator(tokenizer_of(base, view.base_model))
    train = tokens.load_tokens("train")
    batches = list(tokens.sample(train, collate, FITTED, view.seed, BATCH))
    with as_user_error(ValueError, before=where):
        layer = last_layer(shared_adapter)
        tensors = dict(shared_adapter.tensors)
        for key, value in base.state_dict().items():
            if key.startswith(f"{layer}."):
                tensors[f"{PREFIX}{key}"] = value
        model = load_onto(base, shared_adapter._replace(tensors=tensors), trainable=True)
        freeze_shared_adapter(model, layer)
        own = [heads.last_layer_of(model, layer)]
        with (
            standardize_numbers(task, lambda: heads.last_layer_of(model, layer)),
            fit_head(model, own, batches, seed=view.seed, keep=True, track=console.track),
        ):
            return model


def _check_type(view: FactorizeInitView, shared_adapter: Files) -> None:
    """Check that params.yaml selects the type of the shared adapter, since reports name it.

    Raises:
        UserError: if it is of another type.
    """
    section = load_params().sections[view.adapter]
    shared = shared_adapter.fields["peft_type"]
    if isinstance(section, LsrParams | PeftParams) and section.type != shared:
        given = f"{PARAMS}: adapter: {view.adapter} is not of the type of {view.tenants.folder}"
        raise UserError(f"{given}, in which tenants.shared_adapter has an adapter of {shared}; choose one that is")


def freeze_shared_adapter(model: PeftModel, layer: str) -> None:
    """Freeze all parameters except the tenants' rows of the head's last layer."""
    model.requires_grad_(False)
    heads.last_layer_of(model, layer).requires_grad_(True)


def make_group_entries(
    bank: AdapterBank, tenants: Sequence[str], group_heads: Sequence[GroupHead]
) -> dict[str, Contents]:
    """Return the entries of groups for a bank of these tenants, with calibrated rows; see `lsr.serve.group_names`."""
    entries = dict[str, Contents]()
    for head in group_heads:
        labels = head.group.labels
        name = name_group(labels)
        first = head.group.tenants[0]
        member = bank.contents(tenants[first])
        task_info = dict(member.task or {})
        task_info["labels"] = None if labels is None else list(labels)
        divisor = 1.0
        if head.temperature is not None:
            task_info["temperatures"] = [head.temperature]
            divisor = head.temperature
        (ending,) = member.endings
        layer = ending.removeprefix(".")
        tensors = {f"{layer}.weight": head.rows.weight / divisor}
        if head.rows.bias is not None:
            tensors[f"{layer}.bias"] = head.rows.bias / divisor
        entries[name] = replace(member, source=name, heads=tensors, task=task_info)
    return entries


class HeadInputs(nn.Module):
    """A bank as a model whose `logits` are the inputs of its head's last layer, (n, width), whoever the tenants are."""

    def __init__(self, bank: AdapterBank) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, tenant: Tensor | None = None, **inputs: Tensor) -> SimpleNamespace:
        """Return the inputs of the head."""
        return SimpleNamespace(logits=self.bank.head_inputs(**inputs))


class BankModel(nn.Module):
    """A bank as a model; each row has the number of its tenant, an index into `names`."""

    def __init__(self, bank: AdapterBank, names: Sequence[str]) -> None:
        super().__init__()
        self.bank = bank
        self.names = names

    def forward(self, tenant: Tensor, **inputs: Tensor) -> SimpleNamespace:
        """Return the outputs of each row's tenant as `logits`, padded with the smallest number."""
        names = [self.names[number] for number in tenant.tolist()]
        logits = self.bank(**inputs, adapter_names=names).logits
        return SimpleNamespace(logits=logits.clamp(min=torch.finfo(logits.dtype).min))
