"""Folders of adapters of tiny base models, with random values, and what the bases say with them."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lsr.serve.admission import heads_in
from tests.old_tiny import subjects
from tests.old_tiny.models import tiny, tokens
from tests.old_tiny.subjects import BASES, DENSE, Subject
from tests.old_tiny.training import stir

CASES = {  # the configurations of subjects.py, and one without a task: model, fields
    **{name: (one.model, one.fields) for name, one in subjects.CASES.items()},
    "no task": ("bert", {**DENSE, "task_type": None, "bias": "lsr_only"}),
}
FORMS = {  # what a bank takes: model, fields
    "cores": ("bert", BASES),
    "diagonal cores on shared bases": ("bert", {**BASES, "core": "diagonal", "share": "layers"}),
    "cores, a head of two layers": ("roberta", BASES),
    "factors": ("bert", DENSE),
    "the paper's, padded": ("bert-padded", {}),
    "a head of two modules": ("distilbert", DENSE),
    "transposed": ("gpt2", {**DENSE, "share": "layers", "train": "all", "target_modules": "all-linear"}),
    "no head": ("gpt2-causal", DENSE),
}


def save(folder, model="bert", seed=1, base="tiny", labels=None, **fields):
    """Save an LSR adapter at `folder`."""
    made(Subject(model, fields).config(), model, base, seed, labels, folder)
    return folder


def save_lora(folder, model="bert", seed=1, base="tiny", labels=None, **fields):
    """Save a LoRA at `folder`."""
    usual = {"task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "value"]}
    made(LoraConfig(**{**usual, **fields}), model, base, seed, labels, folder)
    return folder


def save_with_base(folder, model="bert", config=None, **fields):
    """Save an adapter at `folder`/adapter and its base at `folder`/base; return the model."""
    tiny(model).save_pretrained(str(folder / "base"))
    return made(config or Subject(model, fields).config(), model, str(folder / "base"), 1, None, folder / "adapter")


def made(config, model, base, seed, labels, folder):
    """Save a model with an adapter of a configuration, and return it."""
    start = with_labels(tiny(model), labels)
    start.name_or_path = base
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = stir(get_peft_model(start, config).eval(), seed)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted


def with_labels(model, labels):
    """Give a model a last layer of so many labels; None: its own."""
    if labels is not None:
        layer = heads_in(model)[-1]
        old = model.get_submodule(layer)
        with torch.random.fork_rng():
            torch.manual_seed(labels)
            model.set_submodule(layer, nn.Linear(old.in_features, labels, bias=old.bias is not None))
        model.num_labels = model.config.num_labels = labels
    return model


def says(model, folder=None, rows=4, dtype=torch.float64, labels=None):
    """Return the logits of a base model, with the adapter of a folder by PEFT."""
    adapted = with_labels(tiny(model), labels).to(dtype)
    if folder is not None:
        adapted = PeftModel.from_pretrained(adapted, str(folder)).to(dtype)
    with torch.no_grad():
        return adapted.eval()(**tokens(rows)).logits


def asked(bank, names, rows=None):
    """Return the logits of a bank for rows with adapters of these names."""
    with torch.no_grad():
        return bank(**tokens(rows or len(names)), adapter_names=names).logits
