"""Tenants' adapters with labels of their own, and a bank of them."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from lsr import AdapterBank, LsrConfig
from tests.workspace import save_tiny_roberta

TENANTS = ("anna", "ben", "cleo", "dora")
LARGE = "cleo"  # in its second version
SHORT = 12  # tokens that second versions read


def save(folder, base, seed, labels, rank=3, max_length=28):
    """Save an adapter with random values: a LoRA or, every other one, of LSR."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    usual = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    config = LoraConfig(r=rank, **usual) if seed % 2 else LsrConfig(rank_shape=(rank,), separation_rank=None, **usual)
    model, generator = get_peft_model(model, config), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "task.json").write_text(json.dumps({"columns": ["text"], "labels": labels, "max_length": max_length}))


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """A folder with a base model, two versions of each tenant's adapter, and a bank of the first ones.

    The second versions have more labels and ranks, one of them so many that it passes apart, and read shorter texts.
    """
    folder = tmp_path_factory.mktemp("server")
    save_tiny_roberta(folder / "base")
    for number, name in enumerate(TENANTS):
        for version in (0, 1):
            count = 2 + number + version * (70 if name == LARGE else 1)
            labels = [f"{name}-{version}-{label}" for label in range(count)]
            sizes = {"rank": 5, "max_length": SHORT} if version else {}
            save(folder / f"{version}/{name}", folder / "base", 2 * number + version, labels, **sizes)
    bank = AdapterBank(AutoModelForSequenceClassification.from_pretrained(folder / "base"))
    for name in TENANTS:
        bank.add(name, folder / f"0/{name}")
    bank.add("eve", folder / "0/anna")
    for stack in bank.heads["classifier"].stacks.values():  # weights that overflow: the file of a bank may hold any
        stack.put(bank.places["eve"], 3e38 * stack.rows(bank.places["eve"]).sign())
    bank.save(folder / "bank")
    return folder
