"""What only LSR has of PEFT's behaviors: its layers, files and initializations. The others: test_citizenship.py."""

import re

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, LsrModel
from lsr.tuner.layer import LsrLayer
from lsr.tuner.linear import adapted_layers
from tests.capabilities.checks import is_factor, train, trainable
from tests.capabilities.models import logits, tiny, tokens
from tests.capabilities.subjects import METHODS, Subject
from tests.lsr.saved import entries
from tests.lsr.subjects import CASES

pytestmark = pytest.mark.usefixtures("remembered_fits")

_, _, SECOND = METHODS["LSR"]
HEAD_MODELS = {  # a head of one layer, of several inside one module, of two modules, without a bias
    "bert": CASES["two factors"],
    "roberta": CASES["row space"],
    "distilbert": Subject("distilbert"),
    "gpt2": CASES["transposed weights"],
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_model = pytest.mark.parametrize("case", HEAD_MODELS.values(), ids=HEAD_MODELS)


def is_head(case, name):
    return any(f"{head}.modules_to_save." in name for head in case.trained_whole)


def is_chosen_bias(case, name):
    if not name.endswith("bias") or "original_module" in name:  # a head that was replaced is out of use
        return False
    return {"none": False, "all": True, "lsr_only": "base_layer.bias" in name}[case.fields.get("bias", "none")]


def trained(case, **fields):
    model = case.fresh(**fields)
    train(model)
    return model


# A fresh adapter


@each_model
def test_with_both_sides_random_the_model_differs(case):
    assert not torch.allclose(logits(case.fresh(init_weights=False)), logits(tiny(case.model)))


@each_case
def test_exactly_the_expected_layers_are_adapted(case):
    model = case.fresh()
    assert len(adapted_layers(model)) == case.layers
    assert list(adapted_layers(model)) == model.base_model.targeted_module_names


def test_patterns_choose_rank_terms_and_alpha_of_single_layers():
    layers = adapted_layers(CASES["patterns"].fresh())
    prefix = "bert.encoder.layer."
    chosen = {
        name.removeprefix(prefix): (
            layer.adapter("default").form.rank_shape,
            layer.adapter("default").form.separation_rank,
        )
        for name, layer in layers.items()
    }
    assert chosen == {
        "0.attention.self.query": ((1, 2), 3),
        "0.attention.self.key": ((2, 2), 1),
        "0.attention.self.value": ((2, 2), 3),
        "1.attention.self.query": ((1, 2), 3),
        "1.attention.self.key": ((2, 2), 1),
        "1.attention.self.value": ((2, 1, 1), 3),
    }
    scalings = {name.removeprefix(prefix): layer.adapter("default").scaling for name, layer in layers.items()}
    assert scalings["0.attention.self.query"] == 3 / 2
    assert scalings["1.attention.self.query"] == 7 / 2
    assert scalings["0.attention.self.key"] == 7 / 4


def test_a_padded_case_is_padded():
    shapes = {
        layer.adapter("default").form.in_shape for layer in adapted_layers(CASES["padded width"].fresh()).values()
    }
    assert shapes == {(9, 7)}  # 63 for a width of 62


def test_own_shapes_are_used():
    for layer in adapted_layers(CASES["own shapes"].fresh()).values():
        assert (layer.adapter("default").form.in_shape, layer.adapter("default").form.out_shape) == ((5, 5), (2, 13))


# Training


@each_case
def test_only_factors_heads_and_chosen_biases_train(case):
    model = case.fresh()
    for name, parameter in model.named_parameters():
        expected = is_factor(name) or is_head(case, name) or is_chosen_bias(case, name)
        assert parameter.requires_grad == expected, name


@each_case
def test_every_trainable_tensor_gets_a_gradient_within_two_steps_and_moves(case):
    model = case.fresh()
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    _, had_gradient = train(model)
    for name, parameter in trainable(model).items():
        if not name.endswith("key.bias"):  # the softmax over keys does not see it
            assert had_gradient[name], name
            assert not torch.equal(parameter, before[name]), name


@each_model
def test_training_lowers_the_loss(case):
    losses, _ = train(case.fresh(), steps=25, learning_rate=0.01)
    assert losses[-1] < 0.6 * losses[0]


@each_model
def test_the_factors_alone_lower_the_loss(case):
    model = case.fresh(task_type=None, exclude_modules=list(case.trained_whole))
    assert all(is_factor(name) for name in trainable(model))
    losses, _ = train(model, steps=25, learning_rate=0.02)
    assert losses[-1] < 0.97 * losses[0]


# Saving and loading


@each_case
def test_the_file_holds_the_factors_the_heads_and_the_chosen_biases(case, tmp_path):
    model = trained(case)
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    # Everything frozen is stored too: what is subtracted, and with train="first" all factors but A1 and B1.
    expected = {
        name.replace(".modules_to_save.default", "")
        .replace(".lsr_adapters.default.", ".lsr_adapters.")
        .removesuffix(".default"): value
        for name, value in model.state_dict().items()
        if is_factor(name) or name in trainable(model)
    }
    assert {name: tensor.shape for name, tensor in written.items()} == {n: v.shape for n, v in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    counted = sum(layer.sizes("default").stored for layer in adapted_layers(model).values())
    assert sum(entries(tensor) for name, tensor in written.items() if ".lsr_" in name) == counted


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("case", ["row space", "principal"])
def test_loading_decomposes_nothing(tmp_path, monkeypatch, case, low_cpu_mem_usage):
    model = trained(CASES[case])
    model.save_pretrained(str(tmp_path))
    base = tiny(CASES[case].model)
    monkeypatch.setattr(LsrLayer, "initialize", lambda *_: pytest.fail("factors were initialized"))
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("a decomposition was computed"))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))


def test_an_adapted_language_model_generates():
    model = Subject("gpt2-causal").stirred()
    generated = model.generate(**{name: ids[:1] for name, ids in tokens().items()}, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 12)


def test_a_tied_head_that_folds_its_start_leaves_the_embeddings():
    fields = {"target_modules": ["lm_head"], "init_weights": "principal"}
    model = Subject("gpt2-causal", fields).fresh()
    base = model.get_base_model()
    assert torch.equal(base.transformer.wte.weight, tiny("gpt2-causal").transformer.wte.weight)
    assert_close(logits(model), logits(tiny("gpt2-causal")), atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert base.lm_head.get_base_layer().weight is base.transformer.wte.weight


def test_merging_a_wrong_name_says_which_names_there_are():
    model = with_two(CASES["two factors"])
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"no adapter is named 'typo'; there are \['default', 'second'\]"):
            act(adapter_names=["default", "typo"])


# Several adapters


def with_two(case):
    model = case.fresh(init_weights=False)
    model.add_adapter("second", case.config(**SECOND, init_weights=False))
    return model.eval()


def test_deleting_the_active_adapter_activates_the_other():
    case = CASES["two factors"]
    model = with_two(case)
    with pytest.warns(UserWarning, match="Adapter default was active"):
        model.delete_adapter("default")
    assert torch.equal(logits(model), logits(case.fresh(init_weights=False, **SECOND)))


def test_a_second_adapter_may_sit_on_other_layers(tmp_path):
    case = CASES["two factors"]
    model = case.fresh(init_weights=False)
    first = logits(model)
    model.add_adapter("second", case.config(**SECOND, init_weights=False, target_modules="all-linear"))
    assert torch.equal(logits(model), first)
    assert len(model.peft_config["second"].target_modules) == 13
    model.set_adapter("second")
    alone = case.fresh(**SECOND, init_weights=False, target_modules="all-linear")
    assert torch.equal(logits(model), logits(alone))
    assert len(adapted_layers(model)) == 13
    model.save_pretrained(str(tmp_path), selected_adapters=["second"])
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "second"))), logits(alone))


# How each layer is initialized


@pytest.mark.parametrize("init", [True, False, "principal"])
def test_a_layer_starts_the_same_whatever_other_layers_are_adapted(init):
    case = CASES["two factors"]
    few = adapted_layers(case.fresh(init_weights=init, target_modules=["value"]))
    many = adapted_layers(case.fresh(init_weights=init, target_modules="all-linear"))
    assert len(few) == 2
    for name, layer in few.items():
        a, b = layer.adapter("default").factors()
        other_a, other_b = many[name].adapter("default").factors()
        assert all(torch.equal(one, two) for one, two in zip([*a, *b], [*other_a, *other_b], strict=True))


def test_without_a_seed_torchs_generator_starts_the_layers():
    case = CASES["two factors"]
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = get_peft_model(tiny(case.model), case.config(seed=None))
        runs.append(get_peft_model_state_dict(model))
    (one, again, other), name = (
        runs,
        "base_model.model.bert.encoder.layer.0.attention.self.query.lsr_adapters.factor_A1",
    )
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])


# What PEFT reports


@each_model
def test_the_reports_of_peft_count_and_name_what_is_there(case, capsys):
    model = case.fresh()
    count = sum(parameter.numel() for parameter in trainable(model).values())
    model.print_trainable_parameters()
    assert f"trainable params: {count:,} ||" in capsys.readouterr().out
    layers = [
        layer for layer in model.get_layer_status() if layer.name.removeprefix("model.") not in case.trained_whole
    ]
    assert [layer.name.removeprefix("model.") for layer in layers] == list(adapted_layers(model))
    assert {layer.module_type for layer in layers} == {"lsr.LsrLinear"}
    assert {layer.requires_grad["default"] for layer in layers} == {True}
    status = model.get_model_status()
    assert status.trainable_params == count
    assert status.adapter_model_type == LsrModel.__name__
    assert status.peft_types == {"default": "LSR"}
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])


def test_an_adapted_layer_prints_as_what_it_is():
    assert repr(next(iter(adapted_layers(CASES["two factors"].fresh()).values()))).startswith("lsr.LsrLinear(")


# Mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"separation_rank": 9},
            "layer 'bert.encoder.layer.0.attention.self.query': separation_rank must be in [1, 8]",
        ),
        (
            {"separation_rank_pattern": {"1.attention.self.value": 9}},
            "layer 'bert.encoder.layer.1.attention.self.value': separation_rank must be in [1, 8]",
        ),
        (
            {"in_shape": (4, 5)},
            "in_shape must hold 2 sizes with a product from 24 to 48, such as [6, 4], got [4, 5]",
        ),
        (
            {"init_weights": "principal", "rank_shape": (5, 5), "separation_rank": 1},
            "layer 'bert.encoder.layer.0.attention.self.query': the rank must be in [1, 24]",
        ),
    ],
)
def test_a_size_that_a_layer_does_not_allow_is_refused_with_its_name(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CASES["two factors"].fresh(**fields)


def test_a_model_without_usual_targets_asks_for_them():
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LsrConfig())
