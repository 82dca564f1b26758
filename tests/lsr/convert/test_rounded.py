"""A rounded adapter's folder is read like any other, by everything, and what is read is what was rounded."""

import pytest
import safetensors.torch
import torch
from peft import LoKrConfig, LoraConfig
from safetensors.torch import load_file

from lsr import round_adapter
from lsr.__main__ import main
from lsr.algebra.rounding import PRECISIONS, pack, unpack
from lsr.loading.adapters import load_adapter
from lsr.loading.contents import read_contents
from lsr.tuner.files import CONFIG, ROUNDED, WEIGHTS, read_tensors
from tests.capabilities.models import logits
from tests.kit import refused, said, write
from tests.lsr.convert.test_main import differences
from tests.lsr.saved import CASES, save_with_base

FEW_BITS = PRECISIONS[1:]
OTHERS = {
    "lora": LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "dense"], bias="lora_only"),
    "rslora of several ranks": LoraConfig(
        task_type="SEQ_CLS", r=3, use_rslora=True, target_modules=["query", "value"], rank_pattern={"value": 2}
    ),
    "dora": LoraConfig(task_type="SEQ_CLS", use_dora=True, target_modules=["query"]),
    "lokr": LoKrConfig(task_type="SEQ_CLS", target_modules=["query"]),
}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_what_is_loaded_is_what_was_rounded(case, tmp_path):
    model, fields = CASES.get(case, ("bert", {"config": OTHERS.get(case)}))
    save_with_base(tmp_path, model, **fields)
    round_adapter(tmp_path / "adapter", tmp_path / "rounded", "4bit")
    expected = unpack(pack(load_file(tmp_path / "adapter" / WEIGHTS), "4bit"))
    assert same(read_tensors(tmp_path / "rounded"), expected)
    round_adapter(tmp_path / "rounded", tmp_path / "again", "float32")
    assert same(load_file(tmp_path / "again" / WEIGHTS), expected)
    loaded = logits(load_adapter(tmp_path / "rounded", method=None))
    assert torch.equal(loaded, logits(load_adapter(tmp_path / "again", method=None)))
    assert not torch.equal(loaded, logits(load_adapter(tmp_path / "adapter", method=None)))


def test_rounding_again_changes_no_byte_of_the_packed_tensors(beside):
    write("adapter/task.json", {"labels": ["bad", "fair", "good"]})
    for precision in FEW_BITS:
        round_adapter("adapter", "one", precision, force=True)
        round_adapter("one", "two", precision, force=True)
        assert {path.name for path in (beside / "one").iterdir()} == {CONFIG, ROUNDED, "task.json"}
        for path in (beside / "one").iterdir():
            assert path.read_bytes() == (beside / "two" / path.name).read_bytes()
        expected = safetensors.torch.save(pack(read_tensors(beside / "adapter"), precision))
        assert (beside / "one" / ROUNDED).read_bytes() == expected


def test_the_errors_are_those_of_tensors_and_updates(tmp_path):
    save_with_base(tmp_path)
    report = round_adapter(tmp_path / "adapter", tmp_path / "rounded", "3bit")
    (before, after), pairs = (read_tensors(tmp_path / name) for name in ("adapter", "rounded")), {}
    flat = [torch.cat([value.flatten().double() for value in its.values()]) for its in (before, after)]
    assert report.tensors.total == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()))
    for name in ("adapter", "rounded"):
        for layer_name, update in read_contents(tmp_path / name).updates.items():
            pairs.setdefault(layer_name, []).append(torch.matmul(*update.product()))
    for name, (exact, rounded) in pairs.items():
        assert report.update.layers[name] == pytest.approx(float((rounded - exact).norm() / exact.norm()), rel=1e-4)


# The command


def test_the_command_says_sizes_and_errors(beside):
    lines = said(main, "round", "adapter", "-o", "out", "--to", "3bit").splitlines()
    assert lines[0].startswith("out: 3bit, tensors in ")
    assert lines[1].startswith("rounding error of the tensors: 0.")
    assert " at most, in bert.encoder.layer." in lines[2]
    found = differences(said(main, "export", "out", "--to", "lora", "-o", "lora"))
    assert found.keys() == {"lora, unmerged", "lora, merged by PEFT"}
    assert max(found.values()) < 1e-5


def test_what_cannot_be_rounded_is_refused_and_nothing_written(beside):
    words = ("round", "adapter", "-o", "out", "--to", "3bit")
    overflowing = {name: value * 1e38 for name, value in load_file("adapter/" + WEIGHTS).items()}
    nested = {"a": torch.ones(1), "a.b": torch.ones(1)}
    for tensors, message in (
        (overflowing, "not finite, or of 2^127 and more"),
        ({}, "no floating-point tensor to round"),
        (nested, "list indices must be"),
    ):
        write("adapter/" + WEIGHTS, tensors)
        refused(main, words, says=message)
    assert not (beside / "out").exists()
