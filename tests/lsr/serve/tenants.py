"""Tenants' adapters with labels of their own, adapters of a decoder, and banks of them."""

import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lsr import AdapterBank, LsrConfig
from tests import architectures
from tests.workspace import save_tiny_roberta

TENANTS = ("anna", "ben", "cleo", "dora")
LARGE = "cleo"  # in its second version
SHORT = 12  # tokens that second versions read


def save(folder, base, seed, labels, rank=3, max_length=28):
    """Save an adapter with random values: a LoRA or, every other one, of LSR."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    usual = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    config = LoraConfig(r=rank, **usual) if seed % 2 else LsrConfig(rank_shape=(rank,), separation_rank=None, **usual)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "task.json").write_text(json.dumps({"columns": ["text"], "labels": labels, "max_length": max_length}))


def save_bank(folder):
    """Save a base model, two versions of each tenant's adapter, and a bank of the first ones.

    The second versions have more labels and ranks, one of them so many that it passes apart, and read shorter texts.
    The bank has an adapter more, `eve`, whose answers overflow.
    """
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
    for pool in bank.heads["classifier"].pools.values():  # weights that overflow: the file of a bank may hold any
        pool.put(bank.slots["eve"], pool.pack(3e38 * pool.rows(bank.slots["eve"]).sign()))
    bank.save(folder / "bank")


def save_writers(folder, names, **changes):
    """Save a decoder, with changes of its configuration, and a LoRA of each name, and return a bank of them."""
    architectures.save(folder / "base", "gpt2", **changes)
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(folder / "base"))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
        model.save_pretrained(folder / name)
        bank.add(name, folder / name)
    return bank
