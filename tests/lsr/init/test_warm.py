"""A warm start: the adapter begins as the update of a short training run, as far as its form can hold it."""

from itertools import product

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.algebra.frames import core_between, diagonal_between
from lsr.init.initialization import Source
from lsr.init.steps import set_values
from lsr.init.update import examples_updates
from lsr.init.warm import core, start
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits, tiny
from tests.lsr.init.forms import form_of
from tests.lsr.init.test_head import batches, in_use, state, values_of
from tests.lsr.matrices import decaying, normal

SCALING = 0.7
UPDATE = (decaying(20, 6), normal(6, 26))
each_kind = pytest.mark.parametrize("update", [UPDATE, UPDATE[0] @ UPDATE[1]], ids=["pair", "dense"])


def source_for(update, rank=6, **fields):
    return Source(
        form_of(20, 26, (rank,), 1), lambda: pytest.fail("the weight was read"), SCALING, gradients=[update], **fields
    )


@each_kind
def test_dense_factors_of_enough_rank_are_the_update(update):
    found = start(source_for(update))
    assert_close(SCALING * found.b[0][0] @ found.a[0][0], UPDATE[0] @ UPDATE[1])


@each_kind
def test_factors_of_less_rank_are_its_truncation(update):
    found = start(source_for(update, 2))
    u, values, vt = torch.linalg.svd(UPDATE[0] @ UPDATE[1], full_matrices=False)
    assert_close(SCALING * found.b[0][0] @ found.a[0][0], u[:, :2] * values[:2] @ vt[:2])


@each_kind
def test_a_core_between_frames_that_hold_the_update_is_the_update(update):
    left, right = torch.linalg.qr(UPDATE[0]).Q, torch.linalg.qr(UPDATE[1].T).Q.T
    found = core(source_for(update), 3 * left, right / 2)  # frames of any length
    assert_close(SCALING * 3 * left @ found @ right / 2, UPDATE[0] @ UPDATE[1])


@pytest.mark.parametrize("paired", [False, True])
@each_kind
def test_no_core_between_any_frames_is_nearer_to_the_update(update, paired):
    """Against least squares over all entries, one unknown per entry of the core."""
    left, right = normal(20, 4), normal(4, 26, seed=1)
    found = core(source_for(update, paired=paired), left, right)
    places = [(i, i) for i in range(4)] if paired else list(product(range(4), repeat=2))
    columns = torch.stack([SCALING * torch.outer(left[:, i], right[j]).flatten() for i, j in places], dim=1)
    best = torch.linalg.lstsq(columns, (UPDATE[0] @ UPDATE[1]).flatten()[:, None]).solution[:, 0]
    assert_close(found, best if paired else best.reshape(4, 4))


@pytest.mark.parametrize("between", [core_between, diagonal_between])
def test_directions_that_coincide_share_what_is_there(between):
    """Frames of rank 1 twice: the smallest of many cores, not one without bounds."""
    left, right = normal(20, 1).expand(20, 2), normal(1, 26, seed=1).expand(2, 26)
    found = between(left[:, :1] @ right[:1], left, right)
    assert_close(found, torch.full_like(found, 0.25 if found.dim() == 2 else 0.5))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([], "this initialization needs examples: see lsr.start_from_examples"),
        ([UPDATE, UPDATE], "a warm start goes on from one short training run, got 2"),
        ([(UPDATE[0], UPDATE[1] * float("nan"))], "the update is not finite"),
    ],
)
def test_other_updates_are_refused(updates, message):
    source = Source(form_of(20, 26, (4,), 1), lambda: None, gradients=updates)
    for read in (lambda: start(source), lambda: core(source, normal(20, 4), normal(4, 26))):
        with pytest.raises(ValueError, match=f"^{message}$"):
            read()


# On a model


def trained_dense(listed, names, seed):
    """The tiny model after the short training run: its update added to the weights, its head as trained."""
    model = tiny("bert")
    layers = {name: model.get_submodule(name) for name in names}
    updates = examples_updates(model, layers, listed, [model.classifier], seed=seed, keep_head=True)
    with torch.no_grad():
        for name, (left, right) in updates.items():
            layers[name].weight += (left @ right).float()
    return model.eval()


@pytest.mark.parametrize(
    ("share", "train"),
    [("none", "core"), ("none", "all"), ("none", "factors"), ("layers", "core"), ("layers", "all")],
)
def test_a_model_of_enough_rank_goes_on_from_where_the_short_run_ended(share, train):
    config = LsrConfig(
        task_type="SEQ_CLS", rank_shape=(24,), share=share, train=train, init_weights="warm", alpha=5, seed=0
    )
    model, listed = get_peft_model(tiny("bert"), config).eval(), batches(2, 2, 2)
    start_from_examples(model, listed, seed=3)
    names = [name.removeprefix("base_model.model.") for name in adapted_layers(model)]
    expected = trained_dense(listed, names, 3)
    assert not torch.allclose(logits(expected), logits(tiny("bert")), atol=1e-3)
    assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"frames_dtype": "sign"}, {"core": "diagonal"}])
def test_the_core_fits_the_frames_as_they_are_stored(fields):
    config = LsrConfig(
        **{"task_type": "SEQ_CLS", "rank_shape": (4,), "train": "core", "init_weights": "warm", "seed": 0, **fields}
    )
    model, listed = get_peft_model(tiny("bert"), config).eval(), batches(2, 2, 2)
    start_from_examples(model, listed)
    base = tiny("bert")
    names = [name.removeprefix("base_model.model.") for name in adapted_layers(model)]
    found = examples_updates(base, {name: base.get_submodule(name) for name in names}, listed, [base.classifier])
    for (left, right), layer in zip(found.values(), adapted_layers(model).values(), strict=True):
        adapter = layer.adapter("default")
        update, frames = left @ right, adapter.matrices(*adapter.factors())
        fitted = (update - adapter.update().double()).norm()
        for factor in (0.9, 1.1):
            with torch.no_grad():
                adapter.core *= factor
            assert (update - adapter.update().double()).norm() > fitted
            with torch.no_grad():
                adapter.core /= factor
        assert frames[0].shape == (4, 24)


def test_a_failure_restores_the_head():
    model, layers, head = in_use("bert")
    before = state(model)

    def fail(done, total):
        if done == total - 1:  # the head is fitted and trained by then
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examples_updates(model, layers, batches(2, 2, 2), head, keep_head=True, progress=fail)
    assert state(model) == before


def test_the_head_alone_stays_as_trained():
    model, layers, head = in_use("bert")
    before, head_before = state(model), values_of(head)
    examples_updates(model, layers, batches(2, 2, 2), head, keep_head=True)
    assert all(not torch.equal(one, two) for one, two in zip(values_of(head), head_before, strict=True))
    set_values([parameter for module in head for parameter in module.parameters()], head_before)
    assert state(model) == before
