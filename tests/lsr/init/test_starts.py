"""Every initialization on a model: what it leaves unchanged, and what then trains."""

import copy

import pytest
import torch
from peft import get_peft_model

from lsr import LsrConfig, start_from_examples
from lsr.init import INITIALIZATIONS, READERS
from tests.capabilities.models import LABELS, logits, tiny, tokens
from tests.lsr.init.models import batches

SHAPES = {"separation_rank": 3, "rank_shape": (2, 2), "alpha": 7, "seed": 0, "task_type": "SEQ_CLS"}
each_model = pytest.mark.parametrize("name", ["bert", "bert-padded", "gpt2"])  # Conv1D is the other layout
each_word = pytest.mark.parametrize("init", INITIALIZATIONS)


def adapted(name="bert", **fields):
    """A model whose adapter has started, from examples too."""
    model = get_peft_model(tiny(name), LsrConfig(**{**SHAPES, **fields})).eval()
    if INITIALIZATIONS[fields.get("init_weights", "random")].reads in READERS:
        start_from_examples(model, batches(4, 3), head_steps=5)
    return model


def tensors_of(model):
    """Factors by name."""
    return {name: value for name, value in model.state_dict().items() if ".lsr_adapters." in name}


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        model(**tokens(), labels=torch.arange(4) % LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# A fresh adapter


@each_model
@each_word
def test_a_fresh_adapter_changes_no_bit_but_by_going_on(name, init):
    found, expected = logits(adapted(name, init_weights=init)), logits(tiny(name))
    assert torch.equal(found, expected) != INITIALIZATIONS[init].goes_on


@each_word
def test_every_factor_moves(init):
    model = adapted(init_weights=init)
    before, trained = copy.deepcopy(tensors_of(model)), {n for n, p in model.named_parameters() if p.requires_grad}
    train(model)
    moved = {name for name, value in tensors_of(model).items() if not torch.equal(value, before[name])}
    assert moved == trained & before.keys()
    assert {name.rpartition(".")[2] for name in moved} == {"factor_A1", "factor_B1", "factor_A2", "factor_B2"}
