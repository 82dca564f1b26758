"""Trained tiny adapters in folders, each beside its base model."""

import copy

import torch
from peft import get_peft_model

from lsr import LsrConfig
from tests.capabilities.checks import train
from tests.capabilities.models import tiny

USUAL = {"task_type": "SEQ_CLS", "rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0}
DENSE = {"rank_shape": (4,), "separation_rank": None}
CASES = {  # what it shows: model, fields
    "a head of one layer": ("bert", {}),
    "a head of two layers": ("roberta", {}),
    "a head of two modules": ("distilbert", {"rank_shape": (3, 2), "bias": "all"}),
    "transposed weights": ("gpt2", {"target_modules": "all-linear"}),
    "a language model": ("gpt2-causal", {"task_type": "CAUSAL_LM"}),
    "padded widths": ("bert-padded", {"target_modules": "all-linear"}),
    "patterns": (
        "bert",
        {
            "target_modules": r".*\.(query|key|value)",
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1)},
            "alpha_pattern": {"0.attention.self.query": 3},
            "modules_to_save": ["pooler"],
        },
    ),
    "one factor": ("bert", {**DENSE, "task_type": None, "bias": "lsr_only"}),
    "a core": ("bert", {**DENSE, "train": "core"}),
    "shared": ("bert", {**DENSE, "train": "core", "share": "layers"}),
    "shared and transposed": ("gpt2", {**DENSE, "train": "all", "core": "diagonal", "share": "layers", "seed": None}),
}


def adapted(name, base, **fields):
    """Return an adapter on a fresh tiny model, which is saved at `base`, after steps that move every factor."""
    model = tiny(name)
    model.save_pretrained(str(base))
    model.name_or_path = str(base)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LsrConfig(**copy.deepcopy({**USUAL, **fields})))
    train(adapted, steps=3, learning_rate=0.02)
    return adapted


def save(name, folder, **fields):
    """Save a trained adapter at `folder`/adapter and its base at `folder`/base; return the model."""
    model = adapted(name, folder / "base", **fields)
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return model
