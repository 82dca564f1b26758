"""Gradients over examples are those of backward, through a head that is fitted as by AdamW on the whole model."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lsr.init.gradients import examples_gradients
from lsr.init.head import fitted_head
from tests.capabilities.models import tiny, tokens
from tests.kit import refused
from tests.lsr.init.models import HEADS, LAYERS, Titles, batches, examples, in_use, made, state, values_of, wrapped

each_model = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_gradient_is_that_of_the_mean_loss_over_examples_however_they_are_cut(name):
    model, layers, _ = made(name)
    whole, parts = (examples_gradients(model, layers, cut) for cut in (batches(6), batches(3, 1, 2)))
    (layer,) = layers.values()
    model(**examples()).loss.backward()
    expected = layer.weight.grad if isinstance(layer, nn.Linear) else layer.weight.grad.T
    for found in (*whole.values(), *parts.values()):
        assert_close(found, expected)
        assert (found.dtype, found.device.type) == (torch.float64, "cpu")


# Through a fitted head


@each_model
def test_gradients_are_those_through_the_fitted_head_in_a_peft_wrapper_too(name):
    model, layers, head = made(name)
    listed, titles = batches(2, 4, name=name), Titles()
    found = examples_gradients(model, layers, iter(listed), head, steps=20, seed=4, track=titles)
    assert titles.passes == [*([("fit the head", 20)] if head else []), ("gradients", 2)]
    with fitted_head(model, head, listed, steps=20, seed=4):
        expected = examples_gradients(model, layers, listed)
    assert_close(found, expected, rtol=0, atol=0)
    if head:
        fresh = examples_gradients(model, layers, listed)
        assert not torch.allclose(found[LAYERS[name]], fresh[LAYERS[name]])
        outer, its_layers, wrappers = wrapped(name)
        assert_close(examples_gradients(outer, its_layers, listed, wrappers, steps=20, seed=4), expected)


@pytest.mark.parametrize("name", ["bert", "llama-causal"])
def test_a_measurement_leaves_the_model_as_it_was_and_takes_no_dropout(name):
    model, layers, head = in_use(name)
    before = state(model)
    one, two = (examples_gradients(model, layers, batches(2, 4, name=name), head, steps=3) for _ in range(2))
    assert state(model) == before
    plain, its_layers, its_head = made(name)
    expected = examples_gradients(plain, its_layers, batches(2, 4, name=name), its_head, steps=3)
    assert all(torch.equal(one[key], two[key]) and torch.equal(one[key], expected[key]) for key in layers)


def test_gradients_need_labels():
    model, layers, _ = made("bert")
    message = "the model returned no loss: batches need labels, but these have input_ids, attention_mask"
    assert refused(examples_gradients, model, layers, [tokens()], kind=ValueError) == message


# The head


each_head = pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head])


def fitted_values(model, head, given, **options):
    with fitted_head(model, head, given, **options):
        return values_of(head)


def fitted_in_full(model, head, batch, steps, rate=0.01):
    """The head after as many steps of AdamW on the same batch."""
    model.requires_grad_(False)
    parameters = [parameter.requires_grad_(True) for module in head for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return values_of(head)


@each_head
def test_a_head_is_fitted_as_by_steps_through_the_whole_model(name):
    model, _, head = made(name)
    before = model(**examples()).loss.item()
    with fitted_head(model, head, [examples()], steps=60):
        assert model(**examples()).loss.item() < before - 0.1
    assert_close(fitted_values(model, head, [examples()], steps=5), fitted_in_full(model, head, examples(), steps=5))


@pytest.mark.parametrize("name", ["llama-causal", "gpt2-causal"])
def test_the_head_of_a_language_model_is_fitted_if_asked_unless_it_is_tied(name):
    model = tiny(name).double()
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    batch = {**tokens(), "labels": tokens()["input_ids"]}
    (before,) = values_of([model.lm_head])
    (found,) = fitted_values(model, [model.lm_head], [batch], steps=3)
    assert is_tied == (name == "gpt2-causal") == torch.equal(found, before)
    if not is_tied:
        assert_close([found], fitted_in_full(model, [model.lm_head], batch, steps=3))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "no examples: there are no batches"),
        (
            [examples(), tokens()],
            "batch 2 has no labels to fit a head to: it has input_ids, attention_mask; with head_steps=0 no head is "
            "fitted",
        ),
        ([examples(labels=torch.full((6,), 2))] * 2, "all 12 examples have the label 2: a head needs at least two"),
    ],
)
def test_what_no_head_can_be_fitted_to_is_refused(listed, message):
    model, _, head = made("bert")
    assert refused(fitted_values, model, head, listed, kind=ValueError) == message


def test_a_head_that_is_not_the_models_is_refused():
    model, _, _ = made("bert")
    says = "the loss does not depend on the head: is this the head that the model cal"
    refused(fitted_values, model, [nn.Linear(24, 3)], [examples()], kind=ValueError, says=says)
