import hashlib
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lsr import LsrConfig
from lsr.tuner.base_weight import check_weight, weight_hash
from lsr.tuner.linear import LsrLinear
from tests.capabilities.models import tiny


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
    with pytest.raises(TypeError, match=f"layer 'block.part' cannot be adapted: {reason}"):
        LsrLinear(layer, "default", "block.part")


FIELDS = {"task_type": "SEQ_CLS", "separation_rank": 2, "seed": 0}
LAYER = "bert.encoder.layer.1.attention.self.value"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hash_is_that_of_the_bytes_whatever_the_strides(dtype):
    weight = torch.arange(12.0).reshape(3, 4).to(dtype)
    expected = hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert weight_hash(weight) == weight_hash(weight.T.contiguous().T) == expected
    assert weight_hash(weight.T) != expected
    check_weight(weight, expected, "layer")


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_folded_adapter_is_refused_on_another_base(low_cpu_mem_usage, tmp_path):
    get_peft_model(tiny("bert"), LsrConfig(**FIELDS, init_weights="principal")).save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.get_submodule(LAYER).weight.data[0, 0] += 1e-3
    message = (
        f"layer '{LAYER}': this is not the base model that the adapter was initialized from: the weight (24, 24) in "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PeftModel.from_pretrained(other, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
