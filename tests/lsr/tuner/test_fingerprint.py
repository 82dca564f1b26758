import hashlib
import re

import pytest
import torch
from peft import PeftModel, get_peft_model

from lsr import LsrConfig
from lsr.tuner.fingerprint import are_alike, check_weight, weight_hash, weight_sketch
from tests.capabilities.models import tiny

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


WIDTHS = [(24, 24), (384, 1536), (5, 768)]


def drawn(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", WIDTHS)
def test_a_weight_that_is_rounded_or_tuned_a_little_is_alike(shape):
    weight = drawn(0, shape)
    step = weight.abs().max() / 127
    for near in (weight.bfloat16(), weight.double(), 3 * weight, step * (weight / step).round()):
        assert are_alike(weight_sketch(weight), weight_sketch(near))
    assert are_alike(weight_sketch(weight), weight_sketch(weight + 0.1 * drawn(1, shape)))


@pytest.mark.parametrize("shape", WIDTHS)
def test_unrelated_weights_are_not_alike(shape):
    sketches = [weight_sketch(drawn(seed, shape)) for seed in range(60)]
    assert not [(i, j) for i in range(60) for j in range(i) if are_alike(sketches[i], sketches[j])]


def test_a_weight_that_has_no_sketch_may_be_any():
    assert weight_sketch(torch.zeros(4, 4)) == weight_sketch(torch.empty(4, 4, device="meta")) == ()
    assert are_alike((), weight_sketch(drawn(0, (4, 4))))
