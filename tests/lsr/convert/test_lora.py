"""A LoRA's folder as an LSR adapter is the same, and comes back as it was."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import export_lora, from_lora
from lsr.tuner.files import WEIGHTS, read_config
from tests.capabilities.models import logits, tiny
from tests.kit import write
from tests.lsr.saved import save_lora

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
    "rank one, a head of two layers, dropout": ("roberta", {"r": 1, "bias": "lora_only", "lora_dropout": 0.1}),
    "no task": ("bert", {"r": 8, "task_type": None}),
}


def loaded(name, folder, **options):
    return PeftModel.from_pretrained(tiny(name), str(folder), **options)


@pytest.mark.parametrize("case", LORAS)
def test_the_adapter_computes_what_the_lora_computes_and_merges_to_the_same_bits(case, tmp_path):
    name, fields = LORAS[case]
    save_lora(tmp_path / "lora", name, **{"r": 4, "lora_alpha": 6, **fields})
    from_lora(tmp_path / "lora", tmp_path / "lsr")
    ours, theirs = (loaded(name, tmp_path / folder).eval() for folder in ("lsr", "lora"))
    assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=0)
    merged = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(value, merged[key]) for key, value in ours.merge_and_unload().state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", LORAS)
def test_the_way_there_and_back_changes_no_bit_and_no_scaling(case, dtype, tmp_path):
    name, fields = LORAS[case]
    save_lora(tmp_path / "lora", name, **{"r": 4, "lora_alpha": 6, **fields})
    stored = {key: value.to(dtype) for key, value in load_file(tmp_path / "lora" / WEIGHTS).items()}
    write(tmp_path / "lora" / WEIGHTS, stored)
    from_lora(tmp_path / "lora", tmp_path / "lsr")
    export_lora(tmp_path / "lsr", tmp_path / "back", dtype=dtype)
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert back.keys() == {key for key in stored if "original_module" not in key and "modules_to_save" not in key}
    assert all(value.dtype == dtype and torch.equal(value, stored[key]) for key, value in back.items())
    ours, theirs = (scalings(loaded(name, tmp_path / folder)) for folder in ("back", "lora"))
    assert ours == pytest.approx(theirs, rel=2**-52)
    before, after = (read_config(tmp_path / folder) for folder in ("lora", "back"))
    for field in ("task_type", "base_model_name_or_path", "revision", "auto_mapping", "bias", "lora_dropout"):
        assert after.get(field) == before[field]


def scalings(model):
    return {name: m.scaling["default"] for name, m in model.named_modules() if isinstance(m, LoraLayer)}
