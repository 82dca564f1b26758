"""Adapters side by side, folded ones too: what is subtracted comes and goes with the active adapter."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.tuner.linear import adapted_layers
from tests.capabilities.checks import stir
from tests.capabilities.models import logits, tiny

pytestmark = pytest.mark.usefixtures("remembered_fits")

USUAL = {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0}
CORE = {"rank_shape": (4,), "separation_rank": 1, "train": "core"}
PAIRS = {  # fields of the first and of the second adapter
    "two folded ones": ({"init_weights": "principal"}, {"init_weights": "principal", "rank_shape": (2, 1, 2)}),
    "a folded one beside a core": ({"init_weights": "principal"}, {**CORE, "frames_dtype": "sign"}),
    "two shared ones": ({**CORE, "share": "layers"}, {**CORE, "train": "all", "share": "layers"}),
    "a folded one on other layers": ({}, {"init_weights": "principal", "target_modules": ["intermediate.dense"]}),
}
each_pair = pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS)


def alone(**fields):
    return stir(get_peft_model(tiny("bert"), LsrConfig(**{**USUAL, **fields})).eval())


def with_two(first, second):
    model = alone(**first)
    model.add_adapter("second", LsrConfig(**{**USUAL, **second}))
    model.set_adapter("second")
    stir(model, seed=1)
    model.set_adapter("default")
    return model.eval()


def base_weights_are_pretrained(model):
    base = tiny("bert")
    return all(
        torch.equal(layer.base_parameter(), base.get_submodule(name).weight)
        for name, layer in adapted_layers(model).items()
    )


def outputs(model):
    """What the model says with each adapter, and without."""
    found = {}
    for name in list(model.peft_config):
        model.set_adapter(name)
        found[name] = logits(model)
    with model.disable_adapter():
        found["none"] = logits(model)
    model.set_adapter("default")
    return found


@each_pair
def test_without_adapters_the_base_weights_are_the_pretrained_ones(first, second):
    model = with_two(first, second)
    for name in ("default", "second"):
        model.set_adapter(name)
        before = logits(model)
        with model.disable_adapter():
            assert base_weights_are_pretrained(model)
            assert torch.equal(logits(model), logits(tiny("bert")))
        assert torch.equal(logits(model), before)


@each_pair
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_second_folder_is_loaded_beside_the_first(first, second, low_cpu_mem_usage, tmp_path):
    model = with_two(first, second)
    expected = outputs(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny("bert"), str(tmp_path))
    loaded.load_adapter(str(tmp_path / "second"), "second", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not any(value.is_meta for value in loaded.state_dict().values())
    assert torch.equal(logits(loaded), expected["default"])
    found = outputs(loaded.eval())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@each_pair
def test_both_merged_are_both_active_and_unmerging_brings_every_bit_back(first, second):
    model = with_two(first, second)
    model.base_model.set_adapter(["default", "second"])
    before = logits(model)
    weights = {name: layer.base_parameter().clone() for name, layer in adapted_layers(model).items()}
    model.merge_adapter()
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(layer.base_parameter(), weights[name]) for name, layer in adapted_layers(model).items())
    assert torch.equal(logits(model), before)
    plain = tiny("bert")
    for name, layer in adapted_layers(model).items():
        for adapter in layer.lsr_adapters:
            plain.get_submodule(name).weight.data += layer.get_delta_weight(adapter)
    assert_close(logits(model.merge_and_unload()), logits(plain), atol=1e-5, rtol=1e-5)
