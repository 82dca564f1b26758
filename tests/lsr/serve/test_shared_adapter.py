"""A bank of tenants who share an adapter: against the model with the wide head that they were trained with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LilyConfig, LoraConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.loading.contents import read_contents
from lsr.serve import file
from lsr.serve.shared_adapter import PLACEHOLDER, base_with, split
from lsr.tuner.files import TASK, WEIGHTS
from tests.kit import edit, refused, said, write
from tests.lsr.saved import asked, save_lora, says, with_labels
from tests.old_tiny.models import tiny, tokens
from tests.old_tiny.subjects import BASES, DENSE, SHARED, TARGETS, Subject
from tests.old_tiny.training import stir

TENANTS = {"acme": ["bad", "good"], "bolt": None, "corp": ["a", "b", "c"]}  # the second asks for a number
WIDE = [*TENANTS] * 2 + ["__base__"]
EVERY = {"target_modules": DUMMY_TARGET_MODULES, "modules_to_save": None}
METHODS = {  # model, configuration
    "LSR": ("bert", lambda its: Subject("bert", {**BASES, **its}).config()),
    "LSR, all biases": ("roberta", lambda its: Subject("roberta", {**DENSE, "bias": "all"}).config()),
    "LSR, shared bases": ("distilbert", lambda its: Subject("distilbert", SHARED).config()),
    "LoRA": ("roberta", lambda its: LoraConfig(**its, r=3, lora_alpha=7)),
    "LoRA of a decoder": ("gpt2", lambda its: LoraConfig(**its, r=3)),
    "LoRA of a wider model": ("bert-wide", lambda its: LoraConfig(**its, use_rslora=True)),
    "DoRA": ("bert", lambda its: LoraConfig(**its, use_dora=True)),
    "VeRA": ("roberta", lambda its: VeraConfig(**its, r=8)),
    "the head alone": ("roberta", lambda its: LoraConfig(**{**its, **EVERY})),
    "all weights": ("bert", lambda its: LoraConfig(**{**its, **EVERY, "modules_to_save": ["bert", "classifier"]})),
}
UNMERGED = {
    "Lily": ("roberta", lambda its: LilyConfig(**its)),
    "prompt tuning": ("roberta", lambda its: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)),
}
AS_LORA = ("LSR", "LSR, all biases", "LSR, shared bases", "LoRA", "LoRA of a decoder", "LoRA of a wider model")


def save_tenants(folder, method="LoRA", tenants=TENANTS, seed=1, **more):
    """Save the adapter of tenants at `folder`, and its base beside it; return the model."""
    name, configured = {**METHODS, **UNMERGED}[method]
    base = with_labels(tiny(name), sum(len(labels or "1") for labels in tenants.values()))
    base.name_or_path = str(folder.parent / "base")
    tiny(name).save_pretrained(base.name_or_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields = {"task_type": "SEQ_CLS", "target_modules": TARGETS.get(name, ["query", "value"])}
        model = stir(get_peft_model(base, configured(fields | more)).eval(), seed)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    task_info = {"kind": "classes", "columns": ["text"], "labels": None, "tenants": tenants, "max_length": 9}
    write(folder / TASK, json.dumps(task_info))
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
    acme = {"kind": "classes", "columns": ["text"], "labels": ["bad", "good"], "max_length": 9}
    assert bank.task_infos["acme"] == acme
    bank.save(tmp_path / "bank")
    check(again := AdapterBank.load(None, tmp_path / "bank"), expected)
    assert again.task_infos == bank.task_infos
    model, _ = METHODS[method]
    given = AdapterBank.load(tiny(model), tmp_path / "bank")  # whose head has three rows
    check(given, [*expected[:-1], torch.zeros(3)])
    if method not in AS_LORA:
        refused(bank.write, "acme", tmp_path / "acme", says=f"{tmp_path}/adapter")
        return
    for name in TENANTS:
        again.write(name, tmp_path / name)
        actual = says(model, tmp_path / name, len(WIDE), torch.float32, len(TENANTS[name] or "1"))
        for row in (row for row, one in enumerate(WIDE) if one == name):
            assert_close(actual[row], expected[row], rtol=1e-5, atol=1e-6)


def test_the_common_adapter_is_one_of_peft_and_holds_no_row_of_a_tenant(tmp_path):
    model = save_tenants(tmp_path / "adapter")
    AdapterBank.of_tenants(tmp_path / "adapter", precision="3bit").save(tmp_path / "bank")
    shared_adapter = PeftModel.from_pretrained(
        with_labels(tiny("roberta"), PLACEHOLDER), str(tmp_path / "bank/shared_adapter")
    )
    tensors, whole = (
        load_file(folder / WEIGHTS) for folder in (tmp_path / "bank/shared_adapter", tmp_path / "adapter")
    )
    last = [f"base_model.model.classifier.out_proj.{kind}" for kind in ("weight", "bias")]
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[name], whole[name]) for name in tensors.keys() - {*last})
    assert all(len(tensors[name]) == PLACEHOLDER and not tensors[name].any() for name in last)
    with torch.no_grad():
        actual, expected = (
            one(**tokens(), output_hidden_states=True).hidden_states[-1] for one in (shared_adapter.eval(), model)
        )
    assert_close(actual, expected)


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
    assert_close(says("roberta", tmp_path / "acme", 3, torch.float32, 2)[::2], expected[::2, :2], rtol=1e-5, atol=1e-6)


def test_thousands_take_the_memory_of_their_heads_and_one_pass(tmp_path):
    count = 3000
    save_tenants(tmp_path / "adapter", tenants={f"tenant {at}": ["no", "yes"] for at in range(count)})
    base = tiny("roberta")
    passes = []
    base.register_forward_hook(lambda *_: passes.append(1))
    bank = AdapterBank.of_tenants(tmp_path / "adapter", base)
    assert len(passes) == 1
    rows = 2 * count * (24 + 1) * 4 + 2 * count * 2 * 4  # of weights and biases, and where they are
    assert bank.nbytes < 2.1 * rows  # doubled whenever there is no room
    bank.save(tmp_path / "bank")
    assert (tmp_path / "bank" / file.FILE).stat().st_size < 2 * rows


def test_a_tenant_who_comes_later_is_joined_and_changes_no_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tenants(tmp_path / "adapter", "LoRA of a wider model")
    said(main, "bank", "--from", "adapter", "-o", "first", "--precision", "4bit")
    later(tmp_path / "adapter", tmp_path / "later", late=["x", "y"])
    first, shared = said(main, "bank", "--from", "first", "later", "-o", "both").splitlines()
    size = Path("both", file.FILE).stat().st_size
    assert first == f"both: 4 adapters in 4bit, {size:,} bytes, {size / 4:,.0f} per adapter"
    assert (
        shared
        == f"shared adapter: {sum(path.stat().st_size for path in Path('both/shared_adapter').iterdir()):,} bytes"
    )
    one, both = (AdapterBank.load(None, tmp_path / name) for name in ("first", "both"))
    assert both.names == [*TENANTS, "late"]
    assert torch.equal(asked(both, WIDE), asked(one, WIDE))
    said(main, "bank", "--from", "both", "-o", "both2", "--precision", "float32", "--base", "base")
    assert torch.equal(asked(AdapterBank.load(None, tmp_path / "both2"), WIDE), asked(one, WIDE))
    said(main, "bank", "--from", "adapter", "later", "-o", "exact")
    check(AdapterBank.load(None, tmp_path / "exact"), rows_of(model, WIDE))
    said(main, "bank", "--from", "first", "-o", "both", "--force")
    assert AdapterBank.load(None, tmp_path / "both").names == [*TENANTS]


def test_what_cannot_be_joined_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tenants(tmp_path / "adapter")
    save_tenants(tmp_path / "other", seed=2, tenants={"else": ["a", "b"]})
    save_lora(tmp_path / "plain", "roberta", base=str(tmp_path / "base"))
    for precision in ("3bit", "float32"):
        said(main, "bank", "--from", "adapter", "-o", precision, "--precision", precision)
    for names, line in (
        (("adapter", "other"), "other: its adapters do not share the shared one of those in adapter"),
        (("float32", "plain"), "plain: its adapters do not share the shared one of those in float32"),
        (("plain", "float32"), "float32: its adapters do not share the shared one of those in plain"),
        (("float32", "adapter"), "adapter: acme: an adapter named 'acme' is in the bank"),
        (("float32", "3bit"), "banks in 3bit and float32: choose a precision with --precision"),
    ):
        refused(main, ("bank", "--from", *names, "-o", "new"), says=line)
    write("float32/shared_adapter/mine.txt", "")
    write("float32/shared_adapter/notes.doc", "")
    refused(main, ("bank", "--from", "adapter", "-o", "float32", "--force"), says="holds notes.doc")
    assert not Path("new").exists()


def later(source, folder, **tenants):
    """Write the adapter of other tenants on the same shared one, with random rows."""
    shutil.copytree(source, folder)
    rows = sum(len(labels) for labels in tenants.values())
    layer = "base_model.model.classifier"
    edit(folder / WEIGHTS, **{f"{layer}.weight": torch.randn(rows, 64), f"{layer}.bias": torch.randn(rows)})
    edit(folder / TASK, tenants=tenants)


@pytest.mark.parametrize(
    ("tenants", "says"),
    [
        ({"acme": ["bad", "good"]}, "(6,), but its tenants have 2 outputs"),
        ({}, "names no tenants"),
        (["acme"], "tenants must be an object"),
        ({**TENANTS, "corp": ["a", "b", 3]}, "tenants must be an object with a list of names"),
        ({**TENANTS, "corp": ["a", "b", "a"]}, "corp: its task names 2 different labels, but its head has 3 outputs"),
        *(
            ({"acme": ["a", "b"], name: None, "corp": ["a", "b", "c"]}, "name must be non-empty, not '__base__'")
            for name in ("", "__base__", "..", "../x", "a\\b", "a\n", "\x1b")
        ),
    ],
)
def test_tenants_that_are_not_those_of_the_head_are_refused(tenants, says, tmp_path):
    save_tenants(tmp_path / "adapter")
    edit(tmp_path / "adapter" / TASK, tenants=tenants)
    refused(AdapterBank.of_tenants, tmp_path / "adapter", says=says)


def test_another_layer_with_as_many_rows_is_not_the_last_one(tmp_path):
    tenants = {"acme": [str(at) for at in range(24)]}  # as many as the model is wide
    for method in ("LoRA", "LSR, shared bases"):  # RoBERTa's dense and DistilBERT's pre_classifier have 24 rows, too
        model = save_tenants(tmp_path / method, method, tenants)
        bank = AdapterBank.of_tenants(tmp_path / method)
        check(bank, rows_of(model, ["acme"], tenants), ["acme"])
        edit(tmp_path / method / TASK, tenants={**tenants, "more": None})
        refused(AdapterBank.of_tenants, tmp_path / method, says="but its tenants have 25 outputs")
    save_tenants(tmp_path / "short", tenants={"acme": ["a", "b"]})
    edit(tmp_path / "short" / TASK, tenants=tenants)
    refused(AdapterBank.of_tenants, tmp_path / "short", says="out_proj.bias is (2,), but its tenants have 24 outputs")


def test_what_cannot_be_merged_is_refused_in_one_line(tmp_path):
    save_tenants(tmp_path / "lily", "Lily")
    refused(AdapterBank.of_tenants, tmp_path / "lily", says="lily: LILY cannot be merged: This method is not")
    save_tenants(tmp_path / "prompt", "prompt tuning")
    refused(AdapterBank.of_tenants, tmp_path / "prompt", says="an adapter of the method PROMPT_TUNING has no head")
    save_tenants(tmp_path / "wide")
    refused(AdapterBank(tiny("roberta")).add, "wide", tmp_path / "wide", says="wide: its head is for several tenants")


def test_another_common_adapter_than_the_banks_is_refused(tmp_path):
    for seed, name in enumerate(("one", "two")):
        save_tenants(tmp_path / name, seed=seed)
        AdapterBank.of_tenants(tmp_path / name).save(tmp_path / "bank" / name)
    shutil.rmtree(tmp_path / "bank/one/shared_adapter")
    refused(AdapterBank.load, None, tmp_path / "bank/one", says="shared_adapter: no such folder")
    shutil.copytree(tmp_path / "bank/two/shared_adapter", tmp_path / "bank/one/shared_adapter")
    refused(
        AdapterBank.load,
        None,
        tmp_path / "bank/one",
        says="shared_adapter: not the adapter that the tenants of this bank",
    )


def test_rows_that_overflow_are_named_by_their_tenant_and_nobody_is_added(tmp_path):
    save_tenants(tmp_path / "adapter")
    shared_adapter, tenants = split(tmp_path / "adapter")
    heads = {name: torch.full_like(its, 3e38) for name, its in tenants["corp"].heads.items()}
    heads["classifier.out_proj.weight"][1] *= -1
    bank = AdapterBank(base_with(shared_adapter, None))
    refused(bank.add_all, {**tenants, "corp": replace(tenants["corp"], heads=heads)}, says="corp: its outputs are not")
    assert bank.names == []
    refused(bank.remove, "__base__", says="no adapter is named '__base__'")
