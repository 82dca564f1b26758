"""An adapter on a base model, whatever the dtypes of both: compared with what PEFT loads."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from lsr.loading.adapters import load_adapter, load_onto
from lsr.tuner.files import WEIGHTS
from tests.kit import edit
from tests.lsr.saved import save_with_base
from tests.old_tiny.models import tiny, tokens

LORA = {"task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "value"], "bias": "all"}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=["lsr", "lora"])
def saved(request, tmp_path, monkeypatch):
    """A function that saves an adapter in a dtype beside its base."""
    monkeypatch.chdir(tmp_path)
    config = LoraConfig(**LORA) if request.param == "lora" else None

    def save(dtype):
        save_with_base(tmp_path, config=config)
        edit(tmp_path / "adapter" / WEIGHTS, lambda tensors: {name: its.to(dtype) for name, its in tensors.items()})
        return tmp_path / "adapter"

    return save


@pytest.mark.parametrize("of_file", DTYPES)
@pytest.mark.parametrize("of_base", DTYPES)
def test_head_and_biases_have_the_dtype_of_the_base_and_the_adapter_float32_as_peft_has_them(saved, of_file, of_base):
    folder = saved(DTYPES[of_file])
    base, other = (tiny("bert").to(DTYPES[of_base]) for _ in range(2))
    actual = load_onto(base, folder)
    expected = PeftModel.from_pretrained(other, str(folder))
    dtypes = {name: parameter.dtype for name, parameter in expected.named_parameters()}
    assert {name: parameter.dtype for name, parameter in actual.named_parameters()} == dtypes
    with torch.no_grad():
        assert torch.equal(actual(**tokens()).logits, expected.eval()(**tokens()).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_loaded_in_float32(saved, dtype):
    folder = saved(torch.float32)
    tiny("bert").to(dtype).save_pretrained("base")
    assert {its.dtype for its in load_file("base/model.safetensors").values()} == {dtype}
    actual = load_adapter(folder, "base", None)
    assert {parameter.dtype for parameter in actual.parameters()} == {torch.float32}
    expected = PeftModel.from_pretrained(tiny("bert").to(dtype).float(), str(folder)).eval()
    assert torch.equal(actual(**tokens()).logits, expected(**tokens()).logits)
