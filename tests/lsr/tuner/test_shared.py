"""Two layers may hold one and the same adapter: one set of factors, trained by both."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.linear import adapted_layers
from tests.capabilities.checks import loss, trainable
from tests.capabilities.models import logits, tiny
from tests.lsr.layers import adapt, base, normal

FORMS = {
    "two factors": {},
    "three factors": {"rank_shape": (2, 1, 2)},
    "frozen factors": {"train": "first"},
    "folded": {"init_weights": "principal"},
}
each_form = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


def sharing(fields):
    """A model whose queries of one layer and values of the other have one adapter, and what it was before."""
    config = {"task_type": "SEQ_CLS", "separation_rank": 3, "alpha": 7, "seed": 0, "init_weights": False, **fields}
    model = get_peft_model(tiny("bert").double(), LsrConfig(**config)).eval()
    first, *_, last = adapted_layers(model).values()
    last.lsr_adapters["default"] = first.adapter("default")
    last.settle()
    for value in first.adapter("default").parameters():
        value.data += 0.1 * normal(*value.shape)
    return model, first, last


@each_form
def test_each_layer_adds_the_same_update_to_its_own_weight(fields):
    _, first, last = sharing(fields)
    x = normal(5, 24)
    for layer in (first, last):
        weight = layer.pretrained_weight() + first.adapter("default").update()
        assert_close(layer(x), torch.nn.functional.linear(x, weight, layer.get_base_layer().bias))


@each_form
def test_the_gradients_of_the_layers_add_up(fields):
    model, first, _ = sharing(fields)
    apart = copy.deepcopy(model)
    one, *_, two = adapted_layers(apart).values()
    two.lsr_adapters["default"] = copy.deepcopy(one.adapter("default"))
    for each in (model, apart):
        loss(each).backward()
    pairs = zip(one.adapter("default").parameters(), two.adapter("default").parameters(), strict=True)
    for shared, (mine, other) in zip(first.adapter("default").parameters(), pairs, strict=True):
        assert mine.grad.any()
        assert other.grad.any()
        assert_close(shared.grad, mine.grad + other.grad)


@each_form
def test_its_parameters_count_once(fields):
    model, first, last = sharing(fields)
    names = [name for name, parameter in trainable(model).items() if "modules_to_save" not in name]
    assert sum("lsr_adapters" in name for name in names) == 3 * len(list(first.adapter("default").parameters()))
    assert all(
        name.startswith("base_model.model.bert.encoder.layer.0") or "1.attention.self.query" in name for name in names
    )
    count = sum(layer.sizes("default").trained for layer in adapted_layers(model).values())
    heads = sum(p.numel() for name, p in trainable(model).items() if "modules_to_save" in name)
    assert model.get_nb_trainable_parameters()[0] == count - last.sizes("default").trained + heads


@each_form
def test_merging_keeps_the_function_and_unmerging_brings_every_bit_back(fields):
    model, first, last = sharing(fields)
    before, weights = logits(model), [layer.weight.clone() for layer in (first, last)]
    model.merge_adapter()
    assert_close(logits(model), before)
    model.unmerge_adapter()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip((first, last), weights, strict=True))
    assert torch.equal(logits(model), before)


@each_form
def test_a_copy_shares_as_well_and_nothing_with_the_original(fields):
    model, first, _ = sharing(fields)
    before = logits(model)
    twin = copy.deepcopy(model)
    one, *_, two = adapted_layers(twin).values()
    assert one.adapter("default") is two.adapter("default")
    assert one.adapter("default") is not first.adapter("default")
    assert torch.equal(logits(twin), before)
    one.adapter("default").factor_A1.data += 1
    assert torch.equal(logits(model), before)


@each_form
def test_it_is_saved_once_a_layer_and_loads_as_two_of_equal_values(fields, tmp_path):
    model, _, _ = sharing(fields)
    model.save_pretrained(str(tmp_path))
    loaded = type(model).from_pretrained(tiny("bert").double(), str(tmp_path))
    assert_close(logits(loaded), logits(model))


def test_layers_of_either_layout_share():
    one, two = adapt(base(6, 4)), adapt(base(6, 4, transposed=True))
    two.lsr_adapters["default"] = one.adapter("default")
    x = normal(3, 6)
    assert_close(one(x) - one.base_layer(x), two(x) - two.base_layer(x))
    assert torch.equal(one.get_delta_weight("default"), two.get_delta_weight("default").T)
