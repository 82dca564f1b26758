"""Tiny models, their heads and examples, and everything that a pass over the examples might leave changed."""

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from tests.old_tiny.models import LABELS, tiny, tokens
from tests.old_tiny.subjects import Subject

HEADS = {"bert": ["classifier"], "distilbert": ["pre_classifier", "classifier"], "gpt2": ["score"], "llama-causal": []}
LAYERS = {
    "bert": "bert.encoder.layer.1.attention.self.query",
    "distilbert": "distilbert.transformer.layer.1.attention.q_lin",
    "gpt2": "transformer.h.1.attn.c_attn",  # weights stored as (n, m)
    "llama-causal": "model.layers.1.self_attn.q_proj",
}


def examples(rows=6, **changed):
    return {**tokens(rows), "labels": torch.arange(rows) % LABELS, **changed}


def batches(*sizes, name="bert"):
    parts = {key: value.split(list(sizes)) for key, value in examples(sum(sizes)).items()}
    cut = [{key: values[i] for key, values in parts.items()} for i in range(len(sizes))]
    return [{**one, "labels": one["input_ids"]} for one in cut] if name.endswith("causal") else cut


def made(name):
    """A model in float64, the layer to look at, and the head."""
    model = tiny(name).double()
    return model, {LAYERS[name]: model.get_submodule(LAYERS[name])}, [model.get_submodule(head) for head in HEADS[name]]


def wrapped(name):
    """The same in a PEFT wrapper, with dropout in the adapter."""
    model = Subject(name, {"target_modules": [LAYERS[name]], "dropout": 0.5}).fresh().double()
    layers = {LAYERS[name]: model.get_base_model().get_submodule(LAYERS[name]).get_base_layer()}
    return model, layers, [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def in_use(name):
    """A model in training mode, with dropout, gradients, and a frozen weight."""
    model, layers, head = made(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model(**batches(6, name=name)[0]).loss.backward()
    next(iter(layers.values())).weight.requires_grad_(False)
    model.train()
    next(iter(layers.values())).eval()
    return model, layers, head


def state(model):
    """Everything that a pass might leave changed. Tensors are named by identity and by value."""
    return (
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [(id(parameter.grad), parameter.grad.numpy().tobytes()) for parameter in model.parameters()],
        [(id(parameter), parameter.detach().numpy().tobytes()) for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
    )


def values_of(head):
    return [parameter.detach().clone() for module in head for parameter in module.parameters()]


class Titles:
    """A `track` that notes the title and the length of each pass, and fails in one of them if it is told so."""

    def __init__(self, failing=None):
        self.passes = []
        self.failing = failing
        self.steps = 0

    def __call__(self, items, title):
        self.passes.append((title, len(items)))
        for item in items:
            if self.steps == self.failing:
                raise KeyboardInterrupt
            self.steps += 1
            yield item
