"""The updates of a LoRA's folder are those that PEFT computes, and what is more than B A is refused in one line."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lsr.convert.lora import lora_updates
from lsr.loading.files import InputError, read_config
from lsr.tuner.saved import CONFIG, WEIGHTS
from tests.capabilities.models import tiny

LORAS = {  # what it shows: model, fields
    "usual": ("bert", {}),
    "transposed weights": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "rank stabilized with patterns, all biases": (
        "bert",
        {
            "use_rslora": True,
            "rank_pattern": {"query": 2, "1.attention.self.value": 3},
            "alpha_pattern": {"0.attention.self.query": 5},
            "bias": "all",
        },
    ),
}


def save_lora(name, folder, **fields):
    """Save a LoRA with random values; return the model."""
    torch.manual_seed(0)
    usual = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}
    model = get_peft_model(tiny(name), LoraConfig(**{**usual, "init_lora_weights": False, **fields}))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model


def read(folder):
    return lora_updates(folder, read_config(folder, "LORA"))


@pytest.mark.parametrize("case", LORAS)
def test_the_updates_are_those_of_peft(case, tmp_path):
    name, fields = LORAS[case]
    model = save_lora(name, tmp_path, **fields)
    found = read(tmp_path)
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert found.keys() == layers.keys()
    for layer, (left, right) in found.items():
        delta = layers[layer].get_delta_weight("default").detach().double()
        expected = delta.T if fields.get("fan_in_fan_out") else delta  # as a linear layer's
        assert_close(left @ right, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported; needed: plain LoRA on the base's own weights"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"a_new_option": 3}, "a_new_option=3 is not supported"),
        ({"peft_type": "LSR"}, "an adapter of the method LSR; needed: LORA"),
        ({"r": 5}, "has rank 4, but its configuration says 5"),
        ({"rank_pattern": {"([a-z0-9.]+)+X": 4}}, r"adapter_config.json: rank_pattern: .* is a pattern; in an"),
    ],
)
def test_what_is_more_than_a_product_is_refused(fields, message, tmp_path):
    save_lora("bert", tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_file_of_other_tensors_is_refused(tmp_path):
    save_lora("bert", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    without = next(name for name in tensors if "lora_B" in name)
    for changed, message in (
        ({n: v for n, v in tensors.items() if n != without}, "or one is missing"),
        ({n: v for n, v in tensors.items() if "lora_" not in n}, "holds no LoRA factors"),
        (tensors | {"base_model.model.x.lora_embedding_A": torch.zeros(2, 3)}, "needed: LoRA of linear layers"),
    ):
        save_file(changed, tmp_path / WEIGHTS)
        with pytest.raises(InputError, match=message):
            read(tmp_path)
