"""A warm start: the adapter begins as the update of a short training run, and the core as near to it as it can."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import start_from_examples
from lsr.init.update import examples_updates
from lsr.tuner.layer import adapted_layers
from tests.capabilities.models import logits, tiny
from tests.capabilities.subjects import Subject
from tests.lsr.init.models import HEADS, batches
from tests.lsr.subjects import DENSE


@pytest.mark.parametrize(
    ("name", "share", "train", "core"),
    [
        ("bert", "none", "factors", "full"),
        ("bert", "none", "core", "diagonal"),
        ("bert", "layers", "core", "full"),
        ("llama-causal", "layers", "core", "full"),
    ],
)
def test_a_model_of_enough_rank_goes_on_from_where_the_short_run_ended(name, share, train, core):
    """Its update is added to the weights, and the head is as trained; a language model's stays as it is."""
    fields = {"rank_shape": (24,), "share": share, "train": train, "core": core, "init_weights": "warm", "alpha": 5}
    fields["target_modules"] = ["q_proj"] if name == "llama-causal" else None  # its values are narrower than the rank
    config = Subject(name, {**DENSE, **fields}).config()
    model, listed = get_peft_model(tiny(name), config).eval(), batches(2, 2, 2, name=name)
    start_from_examples(model, listed, head_steps=3, seed=3)
    expected = tiny(name)
    layers = {layer: expected.get_submodule(layer) for layer in adapted_layers(model)}
    head = [expected.get_submodule(part) for part in HEADS[name]]
    updates = examples_updates(expected, layers, listed, head, steps=3, seed=3, keep_head=True)
    with torch.no_grad():
        for layer, (left, right) in updates.items():
            layers[layer].weight += (left @ right).float()
    assert not torch.allclose(logits(expected), logits(tiny(name)), atol=1e-3)
    assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)
