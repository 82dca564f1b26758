"""Factors that layers share, and cores: what is one and the same object, what counts, what is stored, what is refused.

What these have in common with every adapter is in tests/capabilities and test_peft.py, their formulas in
test_special_cases.py.
"""

import re
from collections import OrderedDict

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from lsr import LsrConfig
from lsr.tuner.start import initialize_factors
from tests.capabilities.models import tiny
from tests.capabilities.subjects import Subject
from tests.kit import edit, refused
from tests.lsr.layers import adapters
from tests.lsr.subjects import CASES, SHARED

QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
SUBJECTS = {name: subject for name, subject in CASES.items() if subject.config().share == "layers"}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_the_first_layer_of_a_kind_owns_the_factors_and_the_file_holds_them_once(subject, tmp_path):
    model = subject.stirred()
    first, others = (
        {re.sub(r"\d+", "*", name): adapter for name, adapter in adapters(model).items() if f".{i}." in name}
        for i in (0, 1)
    )
    assert first.keys() == others.keys()
    for kind, adapter in first.items():
        assert others[kind].owner is adapter.owner is adapter
        assert others[kind].core is not adapter.core
    assert len({id(adapter) for adapter in first.values()}) == len(first)
    model.save_pretrained(str(tmp_path))
    written = {key for key in load_file(tmp_path / "adapter_model.safetensors") if ".lsr_" in key}
    held = {key for key in model.state_dict() if ".lsr_" in key}
    assert written == {key.replace(".lsr_adapters.default.", ".lsr_adapters.") for key in held}
    parts = [key.rpartition(".lsr_adapters.") for key in written]
    assert {part for name, _, part in parts if ".1." in name} == {"core"}
    assert {part for name, _, part in parts if ".0." in name} == {"core", "factor_A1", "factor_B1"}


def test_layers_of_other_shapes_are_of_kinds_of_their_own():
    """What is called alike is shared among equal shapes alone; one layer may have none like it."""
    torch.manual_seed(0)
    shapes = [(12, 12), (12, 12), (12, 20), (20, 20), (20, 20), (20, 20)]
    blocks = nn.Sequential(*(nn.Sequential(OrderedDict(fc=nn.Linear(*shape))) for shape in shapes))
    model = get_peft_model(blocks, LsrConfig(**{**SHARED, "target_modules": ["fc"]}))
    found = adapters(model)
    owners = {name: next(key for key, one in found.items() if one is a.owner) for name, a in found.items()}
    assert owners == {"0.fc": "0.fc", "1.fc": "0.fc", "2.fc": "2.fc", "3.fc": "3.fc", "4.fc": "3.fc", "5.fc": "3.fc"}
    kinds = [started.name for started in initialize_factors(model)]
    assert kinds == ["*.fc (12 x 12)", "*.fc (20 x 12)", "*.fc (20 x 20)"]


@pytest.mark.parametrize("is_more", [False, True])
def test_peft_refuses_a_file_that_holds_less_or_more_which_it_would_pass_over(is_more, tmp_path):
    Subject("bert", SHARED).fresh().save_pretrained(str(tmp_path))
    name, of_first = (f"base_model.model.{layer}.lsr_adapters" for layer in reversed(QUERIES))

    def change(tensors):
        if is_more:
            tensors[f"{name}.factor_A1"] = tensors[f"{of_first}.factor_A1"].clone()
        else:
            del tensors[f"{name}.core"]

    edit(tmp_path / "adapter_model.safetensors", change)
    says = "factor_A1 is no part of this adapter on this base model" if is_more else "core is missing"
    line = refused(PeftModel.from_pretrained, tiny("bert"), str(tmp_path), kind=ValueError, says=says)
    assert line.startswith("the adapter's file: ")
    assert QUERIES[1] in line
