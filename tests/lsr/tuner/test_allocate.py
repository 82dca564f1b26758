"""Directions are distributed over the layers that `get_peft_model` adapts, through the head that it trains."""

import pytest
import torch
from peft import get_peft_model

from lsr import LsrConfig, allocate_ranks, start_from_examples
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import LABELS, logits, tiny, tokens

USUAL = {"rank_shape": (1,), "train": "core", "core": "diagonal", "init_weights": "update", "seed": 0}
BATCHES = [{**tokens(), "labels": torch.arange(4) % LABELS} for _ in range(4)]


def allocated(name, budget, **fields):
    """The layers and ranks of a model with a budget, which `get_peft_model` takes and examples initialize."""
    config = allocate_ranks(LsrConfig(**USUAL, **fields), tiny(name), BATCHES, budget)
    model = get_peft_model(tiny(name), config)
    before = logits(model.eval())
    start_from_examples(model, BATCHES)
    assert torch.allclose(logits(model.eval()), before, atol=1e-6)
    return {name: layer.adapter("default").form.rank for name, layer in adapted_layers(model).items()}


@pytest.mark.parametrize("budget", [1, 11])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_head_that_peft_adds_gets_no_directions(name, budget):
    ranks = allocated(name, budget, task_type="SEQ_CLS", target_modules="all-linear")
    assert sum(ranks.values()) == budget
    assert not [layer for layer in ranks if "classifier" in layer]


def test_an_architecture_without_a_default_needs_targets():
    with pytest.raises(ValueError, match=r"^target_modules: there is no default for the architecture 'None'; name the"):
        allocate_ranks(LsrConfig(**USUAL), torch.nn.Sequential(torch.nn.Linear(4, 4)), BATCHES, 4)
