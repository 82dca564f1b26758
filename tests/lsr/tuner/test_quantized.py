"""8-bit and 4-bit base layers of bitsandbytes: they train, save and load, and are never changed."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from tests.capabilities.checks import train, trainable
from tests.capabilities.models import logits, tiny
from tests.capabilities.subjects import Subject
from tests.kit import refused

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
KINDS = {
    "8 bit": lambda n, m, bias: bitsandbytes.nn.Linear8bitLt(n, m, bias, has_fp16_weights=False),
    "4 bit": lambda n, m, bias: bitsandbytes.nn.Linear4bit(n, m, bias, quant_type="nf4"),
}


def quantized(kind):
    """A small BERT whose queries and values have quantized weights."""
    model = tiny("bert-wide")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(("query", "value")):
            layer = KINDS[kind](module.in_features, module.out_features, True)
            layer.load_state_dict(module.state_dict())
            model.set_submodule(name, layer.to("cpu"))  # moving it quantizes it
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_no_bit_trains_comes_back_and_is_not_merged(kind, tmp_path):
    model = get_peft_model(quantized(kind), Subject("bert-wide").config()).eval()
    assert torch.equal(logits(model), logits(quantized(kind)))
    losses, moved = train(model, steps=25)
    assert losses[-1] < 0.9 * losses[0]
    assert all(moved.values())
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(quantized(kind)))
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(quantized(kind), str(tmp_path))), logits(model))
    before, says = logits(model), "its weight is quantized, and merging would round it again; load the"
    for act in (model.merge_adapter, model.merge_and_unload):
        refused(act, kind=ValueError, says=says)
    assert torch.equal(logits(model), before)
