"""Weighted sums of adapters on a model: exact in float64, and stored and loaded like any adapter."""

import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits, tiny

USUAL = {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0}
PAIRS = {  # what it shows: model, fields of the first and of the second adapter
    "different seeds": ("bert", {}, {"seed": 1}),
    "different terms": ("bert", {}, {"separation_rank": 1}),
    "different scalings": ("roberta", {}, {"alpha": 2}),
    "more terms than fit": ("bert", {"separation_rank": 6}, {"separation_rank": 5, "seed": 1}),
    "three factors": ("bert", {"rank_shape": (2, 2, 2)}, {"rank_shape": (2, 2, 2), "seed": 1}),
    "frozen factors of one seed": ("bert", {"train": "first"}, {"train": "first"}),
    "frozen factors of two seeds": ("bert", {"train": "first"}, {"train": "first", "seed": 1}),
    "a folded start": ("bert", {"init_weights": "principal"}, {}),
    "two folded starts": ("bert", {"init_weights": "principal"}, {"init_weights": "principal", "seed": 1}),
    "other layers": ("bert", {"target_modules": ["query"]}, {"target_modules": ["query", "intermediate.dense"]}),
    "own shapes and ranks": (
        "bert",
        {"in_shape": (5, 5), "out_shape": (5, 5), "rank_shape": (1, 2)},
        {"in_shape": (5, 5), "out_shape": (5, 5), "rank_shape": (3, 2)},
    ),
    "padded widths": ("bert-padded", {}, {"init_weights": "principal", "seed": 1}),
    "patterns": ("bert", *2 * ({"rank_pattern": {"query": (1, 2)}, "alpha_pattern": {"0.attention.self.query": 3}},)),
    "transposed weights": ("gpt2-causal", {"target_modules": "all-linear"}, {"seed": 1, "target_modules": ["c_attn"]}),
}
each_pair = pytest.mark.parametrize(("name", "first", "second"), PAIRS.values(), ids=PAIRS)


def with_two(name, first, second):
    """A model in float64 with two adapters, all of whose factors are away from their start."""
    model = get_peft_model(tiny(name).double(), LsrConfig(**{**USUAL, **first}))
    model.add_adapter("second", LsrConfig(**{**USUAL, **second}))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lsr_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model.eval()


def weighted(layer, weights):
    return sum(weight * layer.get_delta_weight(name) for name, weight in weights.items() if name in layer.lsr_adapters)


@each_pair
def test_the_sum_is_exact_in_every_layer(name, first, second):
    model = with_two(name, first, second)
    model.add_weighted_adapter(["default", "second"], [0.7, -2.0], "sum")
    for layer in adapted_layers(model).values():
        assert_close(layer.get_delta_weight("sum"), weighted(layer, {"default": 0.7, "second": -2.0}))


@each_pair
def test_the_sum_leaves_the_others_alone_until_it_is_active(name, first, second):
    model = with_two(name, first, second)
    before = logits(model)
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), before)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".lsr_adapters.sum." in name)


@each_pair
def test_the_sum_is_saved_and_loaded_alone(name, first, second, tmp_path):
    model = with_two(name, first, second)
    model.add_weighted_adapter(["default", "second"], [0.7, -2.0], "sum")
    model.set_adapter("sum")
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(tiny(name).double(), str(tmp_path / "sum"))
    assert_close(logits(loaded), logits(model))


def test_ranks_and_terms_add_up():
    model = with_two("bert", {}, {"separation_rank": 2})
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    config = model.peft_config["sum"]
    assert (config.rank_shape, config.separation_rank, config.alpha) == ((4, 2), 5, 8)


def test_layers_on_which_fewer_adapters_sit_get_their_own_rank(tmp_path):
    fields = {"target_modules": ["query", "intermediate.dense"], "separation_rank": 2, "alpha": 5}
    model = with_two("bert", {}, {**fields, "init_weights": "principal"})
    model.add_weighted_adapter(["default", "second"], [1.0, 0.5], "sum")
    forms = {name: layer.adapter("sum").form for name, layer in adapted_layers(model).items()}
    ranks = {  # r1 of each adapter and of the start that the second subtracts, and their terms
        "query": ((6, 2), 7),
        "value": ((2, 2), 3),
        "dense": ((4, 2), 4),
    }
    assert {name: (form.rank_shape, form.separation_rank) for name, form in forms.items()} == {
        name: ranks[name.rpartition(".")[2]] for name in forms
    }
    model.set_adapter("sum")
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(tiny("bert").double(), str(tmp_path / "sum"))
    found = {name: layer.adapter("default").form for name, layer in adapted_layers(loaded).items()}
    assert found == forms
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("init", ["principal"])
def test_a_sum_of_folded_adapters_subtracts_nothing_from_the_base_weight(init):
    model = with_two("bert-padded", {"init_weights": init}, {"init_weights": init, "seed": 1})
    model.add_weighted_adapter(["default", "second"], [0.7, -2.0], "sum")
    model.set_adapter("sum")
    base = tiny("bert-padded").double()
    for name, layer in adapted_layers(model).items():
        assert not layer.adapter("sum").has_start
        assert torch.equal(layer.base_parameter(), base.get_submodule(name).weight)
        assert_close(layer.get_delta_weight("sum"), weighted(layer, {"default": 0.7, "second": -2.0}))
    assert model.peft_config["sum"].resolved.base_hashes == {}


def test_frozen_factors_of_one_seed_need_no_more_terms():
    model = with_two("bert", {"train": "first"}, {"train": "first"})
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert model.peft_config["sum"].separation_rank == 3


def test_a_sum_of_sums_is_a_sum():
    model = with_two("bert", {"separation_rank": 2}, {"separation_rank": 2})
    model.add_weighted_adapter(["default", "second"], [1.0, 2.0], "sum")
    model.add_weighted_adapter(["sum", "default"], [3.0, -1.0], "more")
    for layer in adapted_layers(model).values():
        assert_close(layer.get_delta_weight("more"), weighted(layer, {"default": 2.0, "second": 6.0}))


def test_one_adapter_can_be_weighed_alone():
    model = with_two("bert", {}, {})
    model.add_weighted_adapter(["second"], [0.5], "less")
    assert model.peft_config["less"].rank_shape == (2, 2)
    for layer in adapted_layers(model).values():
        assert_close(layer.get_delta_weight("less"), 0.5 * layer.get_delta_weight("second"))


def test_the_only_trained_head_comes_along():
    model = with_two("bert", {"modules_to_save": ["classifier"]}, {})
    head = model.base_model.model.classifier.modules_to_save["default"]
    head.weight.data += 1
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert torch.equal(model.base_model.model.classifier.modules_to_save["sum"].weight, head.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapters": ["default", "secnod"]}, "no adapter is named 'secnod'; there are ['default', 'second']"),
        ({"weights": [1.0]}, "weights must hold one number per adapter, 2, got 1"),
        ({"adapters": [], "weights": []}, "weights must hold one number per adapter, 0, got 0"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite, got [1.0, nan]"),
        ({"adapter_name": "second"}, "there is an adapter 'second' already"),
        ({"adapter_name": "a.sum"}, "adapter_name: a name cannot hold a dot, got 'a.sum'"),
        (
            {"combination_type": "svd"},
            "combination_type must be 'cat', where ranks add up and the sum is exact, got 'svd'; as LoRA (python "
            "-m lsr export --to lora)",
        ),
    ],
)
def test_a_request_without_meaning_is_refused(arguments, message):
    model = with_two("bert", {}, {})
    usual = {"adapters": ["default", "second"], "weights": [1.0, 1.0], "adapter_name": "sum"}
    with pytest.raises(ValueError, match=re.escape(message)):
        model.add_weighted_adapter(**{**usual, **arguments})
    assert list(model.peft_config) == ["default", "second"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"rank_shape": (4, 2)}, "'default' and 'second' differ in in_shape, (6, 4) and (4, 6)"),
        ({}, {"rank_shape": (2, 1, 2)}, "differ in in_shape"),
        (
            {"in_shape": (5, 5), "out_shape": (5, 5)},
            {"in_shape": (5, 5), "out_shape": (5, 5), "rank_shape": (2, 1)},
            "differ in rank_shape after r1, (2, 2) and (2, 1)",
        ),
        ({"bias": "lsr_only"}, {}, "'default' trains biases too (bias='lsr_only')"),
        (*2 * ({"modules_to_save": ["classifier"]},), "modules_to_save: ['default', 'second'] have each trained"),
    ],
)
def test_a_sum_without_an_exact_form_is_refused_and_changes_nothing(first, second, message):
    model = with_two("bert", first, second)
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert list(model.peft_config) == ["default", "second"]
    assert set(model.state_dict()) == before


def test_what_cannot_be_summed_here_says_what_to_do_instead():
    model = with_two("bert", {}, {"rank_shape": (4, 2)})
    with pytest.raises(ValueError, match=r"is no sum of Kronecker products of these shapes; as LoRA \(python -m lsr"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
