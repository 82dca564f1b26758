"""A head is fitted as by steps of AdamW on the whole model, unless there is nothing to fit it to."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lsr.init.head import fitted_head
from tests.capabilities.models import tiny, tokens
from tests.kit import refused
from tests.lsr.init.models import HEADS, examples, made, values_of

each_model = pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head])


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


@each_model
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


# Errors


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
