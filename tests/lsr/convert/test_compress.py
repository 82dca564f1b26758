"""Adapters that are quantized or compressed: read like any other, by everything, with the errors that are printed."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import LoKrConfig, LoraConfig
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import compress_adapter, export_lora, quantize_adapter
from lsr.__main__ import main
from lsr.algebra.rounding import PRECISIONS
from lsr.loading.adapters import load_adapter
from lsr.loading.contents import read_contents
from lsr.tuner.files import CONFIG, ROUNDED, WEIGHTS, read_files
from lsr.tuner.packing import pack, unpack
from tests.kit import edit, refused, said, write
from tests.lsr.convert.test_main import differences
from tests.lsr.saved import CASES, save, save_lora, save_with_base, says
from tests.old_tiny.models import logits, tiny
from tests.old_tiny.subjects import BASES

FEW_BITS = PRECISIONS[1:]
OTHERS = {
    "lora": LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "dense"], bias="lora_only"),
    "dora": LoraConfig(task_type="SEQ_CLS", use_dora=True, target_modules=["query"]),
    "lokr": LoKrConfig(task_type="SEQ_CLS", target_modules=["query"]),
}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_what_is_loaded_is_what_was_rounded(case, tmp_path):
    model, fields = CASES.get(case, ("bert", {"config": OTHERS.get(case)}))
    save_with_base(tmp_path, model, **fields)
    quantize_adapter(tmp_path / "adapter", tmp_path / "rounded", "4bit")
    expected = unpack(pack(load_file(tmp_path / "adapter" / WEIGHTS), "4bit"))
    assert same(read_files(tmp_path / "rounded").tensors, expected)
    quantize_adapter(tmp_path / "rounded", tmp_path / "again", "float32")
    assert same(load_file(tmp_path / "again" / WEIGHTS), expected)
    loaded = logits(load_adapter(tmp_path / "rounded", method=None))
    assert torch.equal(loaded, logits(load_adapter(tmp_path / "again", method=None)))
    assert not torch.equal(loaded, logits(load_adapter(tmp_path / "adapter", method=None)))


def test_rounding_again_changes_no_byte_of_the_packed_tensors(beside):
    write("adapter/task.json", {"labels": ["bad", "fair", "good"]})
    for precision in FEW_BITS:
        quantize_adapter("adapter", "one", precision, force=True)
        quantize_adapter("one", "two", precision, force=True)
        assert {path.name for path in (beside / "one").iterdir()} == {CONFIG, ROUNDED, "task.json"}
        for path in (beside / "one").iterdir():
            assert path.read_bytes() == (beside / "two" / path.name).read_bytes()
        expected = safetensors.torch.save(pack(read_files(beside / "adapter").tensors, precision))
        assert (beside / "one" / ROUNDED).read_bytes() == expected


def test_the_errors_are_those_of_tensors_and_updates(tmp_path):
    save_with_base(tmp_path)
    report = quantize_adapter(tmp_path / "adapter", tmp_path / "rounded", "3bit")
    (before, after), pairs = (read_files(tmp_path / name).tensors for name in ("adapter", "rounded")), {}
    flat = [torch.cat([value.flatten().double() for value in its.values()]) for its in (before, after)]
    assert report.tensors.total == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()))
    for name in ("adapter", "rounded"):
        for layer_name, update in read_contents(tmp_path / name).updates.items():
            pairs.setdefault(layer_name, []).append(torch.matmul(*update.product()))
    for name, (exact, rounded) in pairs.items():
        assert report.update.layers[name] == pytest.approx(float((rounded - exact).norm() / exact.norm()), rel=1e-4)


def test_the_command_says_sizes_and_errors(beside):
    lines = said(main, "quantize", "adapter", "-o", "out", "--to", "3bit").splitlines()
    assert lines[0].startswith("out: 3bit, tensors: ")
    assert lines[1].startswith("rounding error of the tensors: 0.")
    assert " at most, in bert.encoder.layer." in lines[2]
    actual = differences(said(main, "export", "out", "--to", "lora", "-o", "lora"))
    assert actual.keys() == {"lora, unmerged", "lora, merged by PEFT"}
    assert max(actual.values()) < 1e-5


def test_what_cannot_be_rounded_is_refused_and_nothing_written(beside):
    words = ("quantize", "adapter", "-o", "out", "--to", "3bit")
    overflowing = {name: value * 1e38 for name, value in load_file("adapter/" + WEIGHTS).items()}
    nested = {"a": torch.ones(1), "a.b": torch.ones(1)}
    for tensors, message in (
        (overflowing, "not finite, or of 2^127 and more"),
        ({}, "no floating-point tensor to quantize"),
        (nested, "list indices must be"),
    ):
        write("adapter/" + WEIGHTS, tensors)
        refused(main, words, says=message)
    assert not (beside / "out").exists()


ADAPTERS = {
    "lora": (save_lora, "bert", {"r": 5, "target_modules": "all-linear", "use_rslora": True}),
    "terms": (save, "bert-padded", {}),
    "cores": (save, "bert", BASES),
    "decoder": (save_lora, "gpt2-causal", {"r": 4, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}),
}


@pytest.fixture(params=ADAPTERS)
def adapter(request, tmp_path):
    kind, model, fields = ADAPTERS[request.param]
    return kind(tmp_path / "adapter", model, **fields)


def dense(folder):
    pairs = {name: update.product() for name, update in read_contents(folder).updates.items()}
    return {name: left @ right for name, (left, right) in pairs.items()}


@pytest.mark.parametrize("form", ["rank", "directions", "shared"])
def test_at_full_rank_only_rounding_is_lost(form, adapter, tmp_path):
    before = dense(adapter)
    most = 999 if form == "directions" else min(min(update.shape) for update in before.values())
    compressed = compress_adapter(adapter, tmp_path / "small", f"{form}:{most}")
    after = dense(tmp_path / "small")
    assert before.keys() == after.keys()
    for name, update in before.items():
        assert_close(after[name], update, rtol=0, atol=1e-6 * float(update.norm()))
    assert compressed.total < 1e-6


@pytest.mark.parametrize(("to", "kept"), [("rank:1", None), ("rank:2", None), ("directions:7", 7)])
def test_what_is_lost_is_the_discarded_singular_values(to, kept, adapter, tmp_path):
    compressed = compress_adapter(adapter, tmp_path / "small", to)
    pairs = {name: update.product() for name, update in read_contents(adapter).updates.items()}
    values = {name: torch.linalg.svdvals(left @ right)[: left.shape[1]] for name, (left, right) in pairs.items()}
    every = torch.cat(list(values.values()))
    least = float(every.sort(descending=True).values[kept - 1]) if kept else None
    lost = {}
    for name, its in values.items():
        lost[name] = its[its < least * (1 - 1e-9)] if least else its[int(to[-1]) :]
        assert compressed.layers[name] == pytest.approx(float(lost[name].norm() / its.norm()), rel=1e-4, abs=1e-6)
    assert compressed.total == pytest.approx(float(torch.cat(list(lost.values())).norm() / every.norm()), rel=1e-4)
    assert sum(update.bases.a.shape[0] for update in read_contents(tmp_path / "small").updates.values()) == (
        kept or int(to[-1]) * len(pairs)
    )


@pytest.mark.parametrize("to", ["rank:2", "directions:9", "shared:3"])
def test_a_compressed_adapter_keeps_its_head_and_exports_as_any_other(to, tmp_path):
    folder = save_lora(tmp_path / "lora", labels=5, r=4)
    write(folder / "task.json", {"labels": list("abcde")})
    compress_adapter(folder, tmp_path / "small", to)
    export_lora(tmp_path / "small", tmp_path / "plain")
    actual = says("bert", tmp_path / "small", labels=5)
    assert_close(says("bert", tmp_path / "plain", labels=5), actual, rtol=1e-6, atol=1e-7)
    before = read_contents(folder)
    after = read_contents(tmp_path / "small")
    assert all(torch.equal(value, after.heads[name]) for name, value in before.heads.items())
    assert after.task == before.task
    assert "base_model: tiny" in (tmp_path / "small/README.md").read_text()
    assert after.base["base_model_name_or_path"] == "tiny"


def test_the_command_says_what_is_kept_in_few_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny("bert-wide").save_pretrained("base")
    save_lora("lora", "bert-wide", base="./base", r=6)
    text = said(main, "compress", "lora", "-o", "small", "--to", "shared:4", "--bits", "3")
    *rows, total, sizes = text.splitlines()
    names = [f"bert.encoder.layer.{i}.attention.self.{x}" for i in (0, 1) for x in ("query", "value")]
    assert [row.split()[1] for row in rows] == names
    assert total.startswith("relative error of the update: 0.")
    before, after = (Path(name).stat().st_size for name in (f"lora/{WEIGHTS}", f"small/{ROUNDED}"))
    assert sizes == f"small: tensors: {before:,} to {after:,} bytes"
    assert logits(load_adapter(tmp_path / "small")).isfinite().all()
    assert said(main, "compress", "lora", "-o", "whole", "--to", "rank:6").endswith(", which is larger\n")


def test_what_cannot_be_held_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_lora("lora")
    save_lora("biases", bias="lora_only")
    shutil.copytree("lora", "zero")
    edit("zero/adapter_model.safetensors", lambda tensors: {key: 0 * value for key, value in tensors.items()})
    shutil.copytree("lora", "huge")
    edit("huge/adapter_model.safetensors", lambda tensors: {key: 2e38 * value.sign() for key, value in tensors.items()})
    for folder, to, bits, message in (
        ("lora", "rank:0", None, "--to must be rank:R, directions:N or shared:R, got 'rank:0'"),
        ("lora", "core:3", None, "got 'core:3'"),
        ("lora", "shared:25", None, "lora: --to shared:25: the rank must be in [1, 24]"),
        ("lora", "rank:1", 1, "--bits of 8, 4, 3, 2"),
        ("biases", "rank:1", None, "trains biases of the base model (bias='lora_only'), which is not supported"),
        ("huge", "rank:1", 3, "huge: base_model.model.classifier.bias holds values that are not finite, or of 2^127"),
        ("zero", "rank:1", None, "zero: its update is zero: there is nothing to compress"),
    ):
        refused(compress_adapter, folder, "small", to, bits=bits, says=message)
        assert not (tmp_path / "small").exists()
