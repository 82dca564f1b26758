"""A bank of tenants who share an adapter: against the model with the wide head that they were trained with."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.loading.contents import read_contents
from lsr.serve.common import PLACEHOLDER
from lsr.tuner.files import TASK, WEIGHTS
from lsr.tuner.targets import last_linear
from tests.capabilities.checks import stir
from tests.capabilities.models import tiny, tokens
from tests.capabilities.subjects import TARGETS, Subject
from tests.kit import refused, write
from tests.lsr.saved import asked, save_lora
from tests.lsr.subjects import DENSE, FRAMES, SHARED

TENANTS = {"acme": ["bad", "good"], "bolt": None, "corp": ["a", "b", "c"]}  # the second asks for a number
WIDE = [*TENANTS] * 2 + ["__base__"]
EVERY = {"target_modules": DUMMY_TARGET_MODULES, "modules_to_save": None}
METHODS = {  # model, configuration
    "LSR": ("bert", lambda its: Subject("bert", FRAMES).config()),
    "LSR, all biases": ("roberta", lambda its: Subject("roberta", {**DENSE, "bias": "all"}).config()),
    "LSR, shared frames": ("distilbert", lambda its: Subject("distilbert", SHARED).config()),
    "LoRA": ("roberta", lambda its: LoraConfig(**its, r=3, lora_alpha=7)),
    "LoRA of a decoder": ("gpt2", lambda its: LoraConfig(**its, r=3)),
    "DoRA": ("bert", lambda its: LoraConfig(**its, use_dora=True)),
    "VeRA": ("roberta", lambda its: VeraConfig(**its, r=8)),
    "the head alone": ("roberta", lambda its: LoraConfig(**{**its, **EVERY})),
    "all weights": ("bert", lambda its: LoraConfig(**{**its, **EVERY, "modules_to_save": ["bert", "classifier"]})),
}
AS_LORA = ("LSR", "LSR, all biases", "LSR, shared frames", "LoRA", "LoRA of a decoder")


def save_tenants(folder, method="LoRA", tenants=TENANTS, seed=1):
    """Save the adapter of tenants at `folder`, and its base beside it; return the model."""
    name, configured = METHODS[method]
    base = wide(tiny(name), sum(len(labels or "1") for labels in tenants.values()))
    base.name_or_path = str(folder.parent / "base")
    tiny(name).save_pretrained(base.name_or_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields = {"task_type": "SEQ_CLS", "target_modules": TARGETS[name]}
        model = stir(get_peft_model(base, configured(fields)).eval(), seed)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    note = {"kind": "classes", "columns": ["text"], "labels": None, "tenants": tenants, "max_length": 9}
    write(folder / TASK, json.dumps(note))
    return model


def wide(model, rows):
    """Give a model a last layer of so many rows."""
    layer = last_linear(model)
    old = model.get_submodule(layer)
    with torch.random.fork_rng():
        torch.manual_seed(rows)
        model.set_submodule(layer, nn.Linear(old.in_features, rows, bias=old.bias is not None))
    model.num_labels = model.config.num_labels = rows
    return model


def rows_of(model, names, tenants=TENANTS):
    """Return for each row the columns of the tenant that it names, of the logits of a model with a wide head."""
    with torch.no_grad():
        logits = model(**tokens(len(names))).logits
    sizes = [len(labels or "1") for labels in tenants.values()]
    columns = dict(zip(tenants, logits.split(sizes, dim=1), strict=True))
    return [columns[name][row] if name in columns else torch.zeros(PLACEHOLDER) for row, name in enumerate(names)]


def check(bank, expected, names=WIDE):
    for answer, its in zip(bank.answers(asked(bank, names), names), expected, strict=True):
        assert_close(answer.logits, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_each_tenant_has_its_rows_of_the_wide_head_also_from_a_file_and_as_lora(method, tmp_path):
    expected = rows_of(save_tenants(tmp_path / "adapter", method), WIDE)
    assert (expected[0] - expected[3]).abs().max() > 1e-3
    bank = AdapterBank.of_tenants(tmp_path / "adapter")
    check(bank, expected)
    answers = bank.answers(asked(bank, WIDE), WIDE)
    assert [answer.labels for answer in answers[:3]] == [("bad", "good"), None, ("a", "b", "c")]
    assert bank.notes["acme"] == {"kind": "classes", "columns": ["text"], "labels": ["bad", "good"], "max_length": 9}
    bank.save(tmp_path / "bank")
    check(again := AdapterBank.load(None, tmp_path / "bank"), expected)
    assert again.notes == bank.notes
    name, _ = METHODS[method]
    given = AdapterBank.load(tiny(name), tmp_path / "bank")  # whose head has three rows
    check(given, [*expected[:-1], torch.zeros(3)])
    if method not in AS_LORA:
        refused(bank.write, "acme", tmp_path / "acme", says=f"{tmp_path}/adapter")
        return
    for name in TENANTS:
        again.write(name, tmp_path / name)
        plain = wide(tiny(METHODS[method][0]), len(TENANTS[name] or "1"))
        plain = PeftModel.from_pretrained(plain, str(tmp_path / name)).eval()
        found = plain(**tokens(len(WIDE))).logits
        for row in (row for row, one in enumerate(WIDE) if one == name):
            assert_close(found[row], expected[row], rtol=1e-5, atol=1e-6)


def test_the_common_adapter_is_one_of_peft_and_holds_no_row_of_a_tenant(tmp_path):
    model = save_tenants(tmp_path / "adapter")
    AdapterBank.of_tenants(tmp_path / "adapter", precision="3bit").save(tmp_path / "bank")
    common = PeftModel.from_pretrained(wide(tiny("roberta"), PLACEHOLDER), str(tmp_path / "bank/common"))
    tensors, whole = (load_file(folder / WEIGHTS) for folder in (tmp_path / "bank/common", tmp_path / "adapter"))
    last = [f"base_model.model.classifier.out_proj.{kind}" for kind in ("weight", "bias")]
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[name], whole[name]) for name in tensors.keys() - {*last})
    assert all(len(tensors[name]) == PLACEHOLDER and not tensors[name].any() for name in last)
    with torch.no_grad():
        found, expected = (
            one(**tokens(), output_hidden_states=True).hidden_states[-1] for one in (common.eval(), model)
        )
    assert_close(found, expected)


def test_an_adapter_of_ones_own_comes_on_top_and_is_written_with_the_common_one(tmp_path):
    save_tenants(tmp_path / "adapter")
    bank = AdapterBank.of_tenants(tmp_path / "adapter")
    own = save_lora(tmp_path / "own", "roberta", base=str(tmp_path / "base"), r=2, target_modules=["query", "key"])
    names = ["acme", "corp", "acme"]
    before = asked(bank, names)
    bank.add("acme", replace(bank.contents("acme"), updates=read_contents(own).updates), replace=True)
    expected = asked(bank, names)
    assert (expected[0, :2] - before[0, :2]).abs().max() > 1e-3
    assert_close(expected[1], before[1], rtol=1e-5, atol=1e-6)
    bank.save(tmp_path / "bank")
    again = AdapterBank.load(None, tmp_path / "bank")
    assert torch.equal(asked(again, names), expected)
    again.write("acme", tmp_path / "acme")
    plain = PeftModel.from_pretrained(wide(tiny("roberta"), 2), str(tmp_path / "acme")).eval()
    for row in (0, 2):
        assert_close(plain(**tokens(3)).logits[row], expected[row, :2], rtol=1e-5, atol=1e-6)
