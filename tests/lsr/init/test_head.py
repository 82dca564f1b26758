"""A head is fitted as by steps of AdamW on the whole model, and is restored or kept."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from lsr.init.head import fitted_head
from tests.capabilities.models import CONFIGS, LABELS, tiny, tokens
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


def regression(rows=6):
    return {**tokens(rows), "labels": torch.linspace(-1, 1, rows, dtype=torch.float64)}


def test_a_head_of_one_number_is_fitted_to_numbers():
    config = copy.deepcopy(CONFIGS["bert"])
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    found = fitted_values(model, [model.classifier], [regression()], steps=5)
    assert_close(found, fitted_in_full(model, [model.classifier], regression(), steps=5))


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


def labels_seen(model, head, given, **options):
    """The labels of each pass of the model."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _, __, fields: seen.append(tuple(fields["labels"].tolist())), with_kwargs=True
    )
    fitted_values(model, head, given, **options)
    hook.remove()
    return seen


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_each_round_of_steps_takes_each_batch_once_in_an_order_of_the_seed(seed, count):
    model, _, head = made("bert")
    listed = [examples(2, labels=torch.tensor([i % LABELS, i // LABELS])) for i in range(count)]
    seen = labels_seen(model, head, listed, steps=3 * count, seed=seed)
    expected = {tuple(batch["labels"].tolist()) for batch in listed}
    assert len(seen) == 3 * count
    assert all(set(seen[start : start + count]) == expected for start in range(0, 3 * count, count))
    assert seen == labels_seen(model, head, listed, steps=3 * count, seed=seed)


# Errors


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "no examples: there are no batches to fit a head to"),
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
    with pytest.raises(ValueError, match=f"^{message}$"):
        fitted_values(model, head, listed)


def test_a_head_that_is_not_the_models_is_refused():
    model, _, _ = made("bert")
    with pytest.raises(ValueError, match=r"^the loss does not depend on the head: is this the head that the model cal"):
        fitted_values(model, [nn.Linear(24, 3)], [examples()])
