"""A warm start: the adapter begins as the update of a short training run, as far as its form can hold it."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.init.initialization import Source
from lsr.init.update import examples_updates
from lsr.init.warm import start
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits, tiny
from tests.lsr.init.forms import form_of
from tests.lsr.init.models import batches
from tests.lsr.matrices import decaying, normal

SCALING = 0.7
UPDATE = (decaying(20, 6), normal(6, 26))
each_kind = pytest.mark.parametrize("update", [UPDATE, UPDATE[0] @ UPDATE[1]], ids=["pair", "dense"])


def source_for(update, rank=6, **fields):
    return Source(
        form_of(20, 26, (rank,)), lambda: pytest.fail("the weight was read"), SCALING, gradients=[update], **fields
    )


@pytest.mark.parametrize("rank", [2, 6])
@each_kind
def test_dense_factors_are_the_update_as_far_as_their_rank_allows(update, rank):
    found = start(source_for(update, rank))
    u, values, vt = torch.linalg.svd(UPDATE[0] @ UPDATE[1], full_matrices=False)
    assert_close(SCALING * found.b[0][0] @ found.a[0][0], u[:, :rank] * values[:rank] @ vt[:rank])


@pytest.mark.parametrize(("share", "train"), [("none", "factors"), ("layers", "core")])
def test_a_model_of_enough_rank_goes_on_from_where_the_short_run_ended(share, train):
    """Its update is added to the weights, and the head is as trained."""
    config = LsrConfig(
        task_type="SEQ_CLS", rank_shape=(24,), share=share, train=train, init_weights="warm", alpha=5, seed=0
    )
    model, listed = get_peft_model(tiny("bert"), config).eval(), batches(2, 2, 2)
    start_from_examples(model, listed, head_steps=3, seed=3)
    expected = tiny("bert")
    layers = {name: expected.get_submodule(name) for name in adapted_layers(model)}
    updates = examples_updates(expected, layers, listed, [expected.classifier], steps=3, seed=3, keep_head=True)
    with torch.no_grad():
        for name, (left, right) in updates.items():
            layers[name].weight += (left @ right).float()
    assert not torch.allclose(logits(expected), logits(tiny("bert")), atol=1e-3)
    assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"frames_dtype": "sign"}, {"core": "diagonal"}])
def test_the_core_fits_the_frames_as_they_are_stored(fields):
    config = LsrConfig(task_type="SEQ_CLS", rank_shape=(4,), train="core", init_weights="warm", seed=0, **fields)
    model, listed = get_peft_model(tiny("bert"), config).eval(), batches(2, 2, 2)
    start_from_examples(model, listed, head_steps=3)
    base = tiny("bert")
    layers = {name: base.get_submodule(name) for name in adapted_layers(model)}
    updates = examples_updates(base, layers, listed, [base.classifier], steps=3)
    for (left, right), layer in zip(updates.values(), adapted_layers(model).values(), strict=True):
        adapter = layer.adapter("default")
        fitted = (left @ right - adapter.update().double()).norm()
        for factor in (0.9, 1.1):
            with torch.no_grad():
                adapter.core *= factor
            assert (left @ right - adapter.update().double()).norm() > fitted
            with torch.no_grad():
                adapter.core /= factor
