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
from tests.lsr.init.models import HEADS, batches, examples, in_use, made, state, values_of, wrapped

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


@each_model
def test_a_head_in_a_peft_wrapper_is_fitted_as_the_plain_one(name):
    model, _, head = made(name)
    expected = fitted_values(model, head, batches(2, 4), steps=5)
    outer, _, wrappers = wrapped(name)
    with fitted_head(outer, wrappers, batches(2, 4), steps=5):
        found = values_of([wrapper.modules_to_save["default"] for wrapper in wrappers])
        for wrapper, module in zip(wrappers, head, strict=True):  # which is not what is trained
            assert_close(list(wrapper.original_module.parameters()), list(module.parameters()), rtol=0, atol=0)
    assert_close(found, expected)


def regression(rows=6):
    return {**tokens(rows), "labels": torch.linspace(-1, 1, rows, dtype=torch.float64)}


@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_head_of_one_number_is_fitted_to_numbers(problem):
    config = copy.deepcopy(CONFIGS["bert"])
    config.num_labels, config.problem_type = 1, problem
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


def test_dropout_takes_no_part_and_the_head_alone_is_another():
    model, _, head = in_use("bert")
    plain, _, its_head = made("bert")
    expected = fitted_values(plain, its_head, batches(2, 4), steps=5)
    *before, values, numbers = state(model)
    with fitted_head(model, head, batches(2, 4), steps=5):
        *within, changed, same_numbers = state(model)
        assert all(torch.equal(one, two) for one, two in zip(values_of(head), expected, strict=True))
    assert (within, same_numbers) == (before, numbers)
    names = [name for name, _ in model.named_parameters()]
    different = {name for name, one, two in zip(names, values, changed, strict=True) if one != two}
    assert different == {"classifier.weight", "classifier.bias"}
    assert state(model) == (*before, values, numbers)


def test_steps_in_half_precision_are_not_lost_to_rounding():
    """Of 1, bfloat16 keeps steps of 0.004 or more."""
    model = tiny("bert").bfloat16()
    model.classifier.weight.data.fill_(1)
    with fitted_head(model, [model.classifier], [examples()], rate=0.001):
        assert model.classifier.weight.dtype == torch.bfloat16
        assert (model.classifier.weight != 1).any()


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


def test_without_steps_nothing_passes_the_model():
    model, _, head = made("bert")
    assert labels_seen(model, head, batches(2, 4), steps=0) == []


# Errors


@pytest.mark.parametrize(
    ("listed", "options", "message"),
    [
        ([], {}, "no examples: there are no batches to fit a head to"),
        (
            [examples(), tokens()],
            {},
            "batch 2 has no labels to fit a head to: it has input_ids, attention_mask; with head_steps=0 no head is "
            "fitted",
        ),
        ([examples(2, labels=torch.tensor([0, torch.nan]))], {}, "batch 1 has labels that are not finite"),
        ([examples(labels=torch.full((6,), 2))] * 2, {}, "all 12 examples have the label 2: a head needs at least two"),
        (
            [examples(labels=torch.tensor([[1.0, 0.0, 1.0]] * 6))],
            {},
            r"all 6 examples have the label \[1.0, 0.0, 1.0\]: a head needs at least two",
        ),
        (
            [examples()],
            {"rate": float("inf")},
            "the loss is not finite in step 2 of 60 of the head at the learning rate inf",
        ),
    ],
)
def test_what_no_head_can_be_fitted_to_is_refused(listed, options, message):
    model, _, head = made("bert")
    with pytest.raises(ValueError, match=f"^{message}$"):
        fitted_values(model, head, listed, **options)


def test_a_head_that_is_not_the_models_is_refused():
    model, _, _ = made("bert")
    with pytest.raises(ValueError, match=r"^the loss does not depend on the head: is this the head that the model cal"):
        fitted_values(model, [nn.Linear(24, 3)], [examples()])
