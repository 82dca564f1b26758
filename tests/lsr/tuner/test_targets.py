"""Names that match nothing are refused with the nearest one, and leave the model as it was."""

import pytest
from peft import PeftModel, get_peft_model
from torch import nn

from lsr import LsrConfig
from lsr.tuner.layer import LsrLinear, adapted_layers
from tests.capabilities.models import tiny
from tests.kit import refused
from tests.lsr.subjects import CASES

MISTAKES = [
    ({"target_modules": ["query", "valeu"]}, "target_modules: no layer is named 'valeu'; linear layers: value, key, "),
    ({"target_modules": ["query", "classifier"]}, "target_modules: 'classifier' is part of the head, or of another"),
    ({"target_modules": "*"}, "target_modules: '*' is not a valid regular expression"),
    ({"modules_to_save": ["clasifier"]}, "modules_to_save: no module is named 'clasifier'; modules: classifier, "),
    ({"alpha_pattern": {"intermediate.dense": 2}}, "alpha_pattern: 'intermediate.dense' matches no adapted layer; "),
    ({"target_modules": ["query"], "layers_to_transform": [0, 2]}, "layers_to_transform: no adapted layer has the in"),
]


@pytest.mark.parametrize(("fields", "message"), MISTAKES)
def test_a_mistake_is_refused_with_its_name_and_what_is_there(fields, message):
    base = tiny("bert")
    refused(get_peft_model, base, CASES["two factors"].config(**fields), kind=ValueError, says=message)
    assert not any(isinstance(module, LsrLinear) for module in base.modules())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 4), "it must be Linear or Conv1D, got Embedding"),
        (nn.Conv1d(4, 4, 1), "it must be Linear or Conv1D, got Conv1d"),
        (nn.MultiheadAttention(4, 2).out_proj, "nn.MultiheadAttention reads its weight but never calls it"),
    ],
    ids=["embedding", "convolution", "attention output"],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name_and_type(layer, reason):
    says = f"layer 'block.part' cannot be adapted: {reason}"
    refused(LsrLinear, layer, "default", "block.part", kind=TypeError, says=says)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_all_linear_layers_of_some_indices_are_those_alone(name, tmp_path):
    fields = {"task_type": "SEQ_CLS", "rank_shape": (2,), "target_modules": "all-linear"}
    every = adapted_layers(get_peft_model(tiny(name), LsrConfig(**fields))).keys()
    model = get_peft_model(tiny(name), LsrConfig(**fields, layers_to_transform=[1]))
    assert adapted_layers(model).keys() == {layer for layer in every if ".1." in layer} != set()
    model.save_pretrained(str(tmp_path))
    assert adapted_layers(PeftModel.from_pretrained(tiny(name), str(tmp_path))).keys() == adapted_layers(model).keys()
