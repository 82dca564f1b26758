"""What only LSR has of PEFT's behaviors: its layers, files and initializations. The others: test_citizenship.py."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr.tuner.linear import adapted_layers
from tests.capabilities.checks import is_factor, train, trainable
from tests.capabilities.models import logits, tiny
from tests.capabilities.subjects import Subject
from tests.lsr.subjects import CASES

PATTERNS = CASES["patterns, more saved whole"]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def is_head(case, name):
    return any(f"{head}.modules_to_save." in name for head in case.trained_whole)


def is_chosen_bias(case, name):
    if not name.endswith("bias") or "original_module" in name:  # a head that was replaced is out of use
        return False
    return {"none": False, "all": True, "lsr_only": "base_layer.bias" in name}[case.fields.get("bias", "none")]


# A fresh adapter


@each_case
def test_exactly_the_expected_layers_are_adapted(case):
    model = case.fresh()
    assert len(adapted_layers(model)) == case.layers
    assert list(adapted_layers(model)) == model.base_model.targeted_module_names


def chosen_by_patterns(model):
    found = {}
    for name, layer in adapted_layers(model).items():
        adapter = layer.adapter("default")
        short = name.removeprefix("bert.encoder.layer.").replace("attention.self.", "")
        found[short] = adapter.form.rank_shape, adapter.form.separation_rank, adapter.scaling
    return found


def test_patterns_choose_rank_and_alpha_of_single_layers_also_when_loaded(tmp_path):
    model = PATTERNS.stirred()
    assert chosen_by_patterns(model) == {
        "0.query": ((1, 2), 3, 3 / 2),
        "0.key": ((2, 2), 3, 7 / 4),
        "0.value": ((2, 2), 3, 7 / 4),
        "1.query": ((1, 2), 3, 7 / 2),
        "1.key": ((2, 2), 3, 7 / 4),
        "1.value": ((2, 1), 3, 7 / 2),
    }
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny("bert"), str(tmp_path))
    assert chosen_by_patterns(loaded) == chosen_by_patterns(model)
    assert torch.equal(logits(loaded), logits(model))


# Training


@each_case
def test_factors_core_heads_and_chosen_biases_alone_train_and_each_moves_within_two_steps(case):
    model = case.fresh()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (is_factor(name) or is_head(case, name) or is_chosen_bias(case, name)), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, had_gradient = train(model)
    for name, value in model.state_dict().items():
        if name not in trainable(model):
            assert torch.equal(value, before[name]), name
        elif not name.endswith("key.bias"):  # the softmax over keys does not see it
            assert had_gradient[name], name
            assert not torch.equal(value, before[name]), name


# Saving and loading


@each_case
def test_the_file_holds_the_adapter_the_heads_and_the_chosen_biases_exactly(case, tmp_path):
    model = case.fresh()
    train(model)
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    expected = {
        name.replace(".modules_to_save.default", "")
        .replace(".lsr_adapters.default.", ".lsr_adapters.")
        .removesuffix(".default"): value
        for name, value in model.state_dict().items()
        if is_factor(name) or name in trainable(model)  # frozen frames are stored too
    }
    assert {name: tensor.shape for name, tensor in written.items()} == {n: v.shape for n, v in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())


def test_a_merged_tied_head_leaves_the_embeddings():
    model = Subject("gpt2-causal", {"target_modules": ["lm_head"]}).stirred()
    base, before = model.get_base_model(), logits(model)
    model.merge_adapter()
    assert torch.equal(base.transformer.wte.weight, tiny("gpt2-causal").transformer.wte.weight)
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert base.lm_head.get_base_layer().weight is base.transformer.wte.weight
