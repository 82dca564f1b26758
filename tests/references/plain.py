"""Independent references: plain transformers, PEFT and dense matrices on the files that a run has written.

Nothing here comes from lsr, pipeline or stages. Each text passes through the model alone, in float32, without padding.
"""

import json
import re
from typing import NamedTuple

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

PREFIX = "base_model.model."  # PEFT's, before the names of tensors of the base model
MARK = ".lsr_adapters."
DIAGONAL = 8  # the divisor of alpha with diagonal cores, as docs/explanation/family.md has it


class LabelUnits(NamedTuple):
    """A label is `offset` plus `factor` times what a head learns; `deviation` is that of the labels."""

    offset: float
    factor: float
    deviation: float

    @classmethod
    def of(cls, labels, head):
        """Return the units for a head's last layer; one without a bias learns in units of the root mean square."""
        labels = np.asarray(labels, np.float64)
        if head.bias is None:
            return cls(0.0, np.sqrt(np.mean(labels**2)), labels.std())
        return cls(labels.mean(), labels.std(), labels.std())

    def standardize(self, head):
        """Let a head that answers with labels answer with what is learned."""
        head.weight.data /= self.factor
        if head.bias is not None:
            head.bias.data = (head.bias.data - self.offset) / self.factor

    def loss(self, learned, label):
        """Return the squared error in units of the variance of the labels."""
        return ((learned * self.factor + self.offset - label) / self.deviation) ** 2

    def label(self, name, value):
        """Return the value of a tensor of a standardized head that answers with labels."""
        return value * self.factor + (self.offset if name.endswith("bias") else 0.0)


def base_model(folder, auto="AutoModelForSequenceClassification", **head):
    """Return the checkpoint of a folder in float32, with a head of the given fields and without a padding token.

    Without a padding token, a decoder classifies the last token of a text that passes alone.
    """
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32, **head).eval()
    model.config.get_text_config().pad_token_id = None
    return model


def adapted(model, folder):
    """Return a base model with the adapter in a folder: merged by dense matrices if it is of LSR, else by PEFT."""
    if fields_of(folder)["peft_type"] != "LSR":
        return PeftModel.from_pretrained(model, str(folder)).eval()
    for layer, update in dense_updates(folder, model).items():
        weight = model.get_submodule(layer).weight
        weight.data = (weight.data.double() + as_stored(model, layer, update)).float()
    load_head(model, folder)
    return model


def fields_of(folder):
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def tensors_of(folder):
    """Return the tensors of an adapter's file by their names in the base model."""
    return {
        name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }


def load_head(model, folder):
    """Load the modules that were trained whole into the base model."""
    head = {name: tensor for name, tensor in tensors_of(folder).items() if MARK not in name and "lora_" not in name}
    assert model.load_state_dict(head, strict=False).unexpected_keys == []


def factors_of(folder):
    return by_layer(tensors_of(folder))


def by_layer(tensors):
    """Return the factors and the core of each layer of an LSR adapter by name; shared ones are in all that share them.

    Layers share with those whose names differ from theirs in the index alone; the file holds what is shared in the
    first of them.
    """
    own = {}
    for name, tensor in tensors.items():
        layer, mark, factor = name.partition(MARK)
        if mark:
            own.setdefault(layer, {})[factor] = tensor
    by_index = sorted(own, key=lambda layer: [int(number) for number in re.findall(r"\d+", layer)])
    first = {}
    return {layer: first.setdefault(re.sub(r"\d+", "*", layer), own[layer]) | own[layer] for layer in by_index}


def scaling_of(fields, rank):
    return fields["alpha"] / (DIAGONAL if fields["core"] == "diagonal" else rank)


def sides(factors, m, n):
    """Return A (r, n), B (m, r) and the core (r, r), each formed densely."""
    a, b = (kronecker_sum(factors, side) for side in ("factor_A", "factor_B"))
    core = factors.get("core", torch.eye(len(a), dtype=a.dtype))
    return a[:, :n], b[:m], core.diag() if core.dim() == 1 else core


def kronecker_sum(factors, side):
    first = factors[f"{side}1"]
    second = factors.get(f"{side}2")
    return first[0] if second is None else sum(map(torch.kron, first, second))


def dense_updates(folder, model):
    """Return the update alpha / r * B R A of each layer of an LSR adapter, (m, n) in float64."""
    fields = fields_of(folder)
    updates = {}
    for layer, factors in factors_of(folder).items():
        precise = {name: value.double() for name, value in factors.items()}
        a, b, core = sides(precise, *weight_of(model, layer).shape)
        updates[layer] = scaling_of(fields, len(core)) * b @ core @ a
    return updates


def weight_of(model, layer):
    """Return the weight (m, n) of y = W x, whatever the layer's layout."""
    return as_stored(model, layer, model.get_submodule(layer).weight)


def as_stored(model, layer, matrix):
    """Return a matrix (m, n) as the layer stores it, or the other way round: GPT-2's Conv1D stores W transposed."""
    return matrix if isinstance(model.get_submodule(layer), torch.nn.Linear) else matrix.T


def encoded(tokenizer, texts, max_length):
    """Return what the tokenizer makes of a text or a pair, cut to `max_length` tokens."""
    return tokenizer(*texts, truncation=True, max_length=max_length, return_tensors="pt")


@torch.no_grad()
def logits_alone(model, folder, listed, max_length):  # (texts, outputs), float64
    """Return the logits of each text or pair of a list, one after the other, by the tokenizer of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return torch.cat([model(**encoded(tokenizer, texts, max_length)).logits for texts in listed]).double()
