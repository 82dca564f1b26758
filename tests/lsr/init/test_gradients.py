"""Gradients over examples are those of backward, take one matrix of memory at a time, and leave the model as it was."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lsr.init.gradients import examples_gradients
from lsr.init.head import fitted_head
from tests.capabilities.models import tokens
from tests.kit import refused
from tests.lsr.init.models import LAYERS, Titles, batches, examples, in_use, made, state, wrapped

each_model = pytest.mark.parametrize("name", LAYERS)
each_layout = pytest.mark.parametrize("name", ["bert", "gpt2"])


@each_layout
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


# What a measurement leaves alone


@pytest.mark.parametrize("name", ["bert", "llama-causal"])
def test_a_measurement_leaves_the_model_as_it_was_and_takes_no_dropout(name):
    model, layers, head = in_use(name)
    before = state(model)
    one, two = (examples_gradients(model, layers, batches(2, 4, name=name), head, steps=3) for _ in range(2))
    assert state(model) == before
    plain, its_layers, its_head = made(name)
    expected = examples_gradients(plain, its_layers, batches(2, 4, name=name), its_head, steps=3)
    assert all(torch.equal(one[key], two[key]) and torch.equal(one[key], expected[key]) for key in layers)


# Errors


def test_gradients_need_labels():
    model, layers, _ = made("bert")
    message = "the model returned no loss: batches need labels, but these have input_ids, attention_mask"
    assert refused(examples_gradients, model, layers, [tokens()], kind=ValueError) == message
