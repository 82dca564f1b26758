"""Trained tiny adapters in folders, each beside its base model."""

import copy

import torch
from peft import get_peft_model

from lsr import LsrConfig
from tests.capabilities.checks import train
from tests.capabilities.models import tiny
from tests.lsr import subjects

USUAL = {"task_type": "SEQ_CLS", "rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0}
CASES = {  # the configurations of subjects.py, and one without a task: model, fields
    **{
        name: (one.model, {"task_type": "CAUSAL_LM" if one.is_causal else "SEQ_CLS", **one.fields})
        for name, one in subjects.CASES.items()
    },
    "no task": ("bert", {**subjects.DENSE, "task_type": None, "bias": "lsr_only"}),
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
