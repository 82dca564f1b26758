"""Factors that are initialized after the model was made are those that `get_peft_model` gives."""

import pytest
import torch
from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.algebra.frames import leading_frames
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.gradients import examples_gradients
from lsr.tuner.layer import adapted_layers
from lsr.tuner.start import groups_of, initialize_factors
from tests.capabilities.models import LABELS, logits, tiny, tokens
from tests.capabilities.subjects import Subject
from tests.kit import refused

MODELS = {"bert-padded": {"rank_shape": (2, 1)}, "gpt2": {}, "bert": {"rank_shape": (3,), "separation_rank": 1}}
BATCHES = [{**tokens(), "labels": torch.arange(4) % LABELS}]
BY_WEIGHT = [word for word, one in INITIALIZATIONS.items() if one.reads not in READERS]
each_model = pytest.mark.parametrize("name", MODELS)


def made(name, init, **fields):
    return Subject(name, {**MODELS[name], **fields, "init_weights": init}).fresh()


def collected(model, batches):
    """The gradients of the base layers through a fitted head."""
    layers = {name: layer.get_base_layer() for name, layer in adapted_layers(model).items()}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return examples_gradients(model, layers, batches, heads)


def assert_same(one, two, folder):
    """The same state, and the same bytes when saved, which load as what was saved."""
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for model, path in ((one, folder / "one"), (two, folder / "two")):
        model.save_pretrained(str(path))
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


@each_model
@pytest.mark.parametrize("init", [*BY_WEIGHT, "gradient"])
def test_factors_that_are_initialized_later_are_those_of_the_usual_ways(name, init, tmp_path):
    later, usual = made(name, True), made(name, init)
    gradients = collected(later, BATCHES) if init == "gradient" else None
    started = list(initialize_factors(later, init_weights=init, statistics=gradients))
    assert len(started) == len(adapted_layers(later))
    if gradients is not None:
        start_from_examples(usual, BATCHES)
    assert_same(later, usual, tmp_path)


@pytest.mark.parametrize("share", ["none", "layers"])
def test_frames_are_those_of_all_layers_that_share_them(share):
    """Against the frames of the very matrices; a pair of thin matrices is as good as their product."""
    core = {"rank_shape": (4,), "separation_rank": 1, "train": "core", "share": share}
    model = made("bert", "gradient", **core)
    one = collected(model, BATCHES)
    pairs = {name: (gradient, torch.eye(24, dtype=torch.float64)) for name, gradient in one.items()}
    groups = groups_of(model, "default")
    assert list(initialize_factors(model, statistics=pairs)) == list(groups)
    assert len(groups) == (2 if share == "layers" else 4)
    for layers in groups.values():
        names = [layer.layer_name for layer in layers]
        left, right = leading_frames([one[name] for name in names], 4)
        for layer in layers:
            (a,), (b,) = layer.adapter("default").factors()
            assert_close(b[0].double(), left, atol=1e-5, rtol=0)
            assert_close(a[0].double(), right, atol=1e-5, rtol=0)
    assert torch.equal(logits(model), logits(tiny("bert")))


def test_examples_are_for_the_gradient_alone():
    says = "init_weights must be 'gradient' or 'update' or 'warm' to start from examples, got 'principal'"
    refused(start_from_examples, made("bert", "principal"), BATCHES, kind=ValueError, says=says)


OTHER = {"task_type": "SEQ_CLS", "target_modules": ["query"], "rank_shape": (3,), "seed": 0}


def test_an_adapter_that_is_not_the_active_one_starts_from_no_examples():
    model = get_peft_model(tiny("bert"), LsrConfig(**OTHER), adapter_name="a")
    model.add_adapter("b", LsrConfig(**OTHER, init_weights="warm"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    says = "adapter 'b' must be the active one, and 'a' is: call model.set_adapter('b') first"
    refused(start_from_examples, model, BATCHES, "b", kind=ValueError, says=says)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
