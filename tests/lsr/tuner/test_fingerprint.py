import hashlib
import re

import pytest
import torch
from peft import PeftModel, get_peft_model

from benchmarks.capabilities.models import logits, tiny
from lsr import LsrConfig
from lsr.tuner.fingerprint import check_weight, weight_hash

FIELDS = {"task_type": "SEQ_CLS", "separation_rank": 2, "seed": 0}
LAYER = "bert.encoder.layer.1.attention.self.value"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hash_is_that_of_the_bytes_whatever_the_strides(dtype):
    weight = torch.arange(12.0).reshape(3, 4).to(dtype)
    expected = hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert weight_hash(weight) == weight_hash(weight.T.contiguous().T) == expected
    assert weight_hash(weight.T) != expected
    check_weight(weight, expected, "layer")


def test_a_weight_without_values_is_refused():
    with pytest.raises(
        ValueError, match="layer 'a': cannot subtract an initial update from a base weight without values"
    ):
        check_weight(torch.empty(2, 2, device="meta"), "1f", "a")


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("init", ["principal", "minor", "cp"])
def test_a_folded_adapter_is_refused_on_another_base(init, low_cpu_mem_usage, tmp_path):
    get_peft_model(tiny("bert"), LsrConfig(**FIELDS, init_weights=init)).save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.get_submodule(LAYER).weight.data[0, 0] += 1e-3
    message = (
        f"layer '{LAYER}': this is not the base model that the adapter was initialized from: the weight (24, 24) in "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PeftModel.from_pretrained(other, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("init", ["random", "row_space"])
def test_an_adapter_that_subtracts_nothing_may_move_to_another_base(init, tmp_path):
    get_peft_model(tiny("bert"), LsrConfig(**FIELDS, init_weights=init)).save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.get_submodule(LAYER).weight.data[0, 0] += 1e-3
    assert torch.equal(logits(PeftModel.from_pretrained(other, str(tmp_path))), logits(other))
