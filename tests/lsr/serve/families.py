"""Folders of adapters of one tiny base model, with random values, and what each says alone."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lsr import LsrConfig
from tests.capabilities.models import tiny, tokens

USUAL = {"task_type": "SEQ_CLS", "rank_shape": (4,), "separation_rank": None, "alpha": 7, "seed": 0}
FRAMES = {"train": "core", "init_weights": "principal"}
FORMS = {  # model, fields
    "cores": ("bert", FRAMES),
    "diagonal cores on shared frames": ("bert", {**FRAMES, "core": "diagonal", "share": "layers"}),
    "cores, a head of two layers": ("roberta", FRAMES),
    "factors": ("bert", {}),
    "the paper's, padded": ("bert-padded", {"rank_shape": (2, 2), "separation_rank": 3}),
    "a head of two modules": ("distilbert", {}),
    "transposed": ("gpt2", {"share": "layers", "train": "all", "target_modules": "all-linear"}),
    "no head": ("gpt2-causal", {"task_type": "CAUSAL_LM"}),
}
CORED = [form for form, (_, fields) in FORMS.items() if fields.get("train") == "core"]


def save(folder, model="bert", seed=1, base="tiny", labels=None, **fields):
    """Save an LSR adapter with random values at `folder`."""
    return with_values(folder, LsrConfig(**{**USUAL, **fields}), model, seed, base, labels)


def save_lora(folder, model="bert", seed=1, base="tiny", labels=None, **fields):
    """Save a LoRA with random values at `folder`."""
    usual = {"task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "value"]}
    return with_values(folder, LoraConfig(**{**usual, **fields}), model, seed, base, labels)


def with_values(folder, config, model, seed, base, labels):
    start = with_labels(tiny(model), labels)
    start.name_or_path = base
    adapted = get_peft_model(start, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def with_labels(model, labels):
    """Give a BERT a head of so many labels; None: its own."""
    if labels is not None:
        with torch.random.fork_rng():
            torch.manual_seed(labels)
            model.classifier = nn.Linear(model.config.hidden_size, labels)
        model.num_labels = model.config.num_labels = labels
    return model


def says(model, folder=None, rows=4, dtype=torch.float64, labels=None):
    """Return the logits of a base model, with the adapter of a folder by PEFT."""
    adapted = with_labels(tiny(model), labels).to(dtype)
    if folder is not None:
        adapted = PeftModel.from_pretrained(adapted, str(folder)).to(dtype)
    with torch.no_grad():
        return adapted.eval()(**tokens(rows)).logits
