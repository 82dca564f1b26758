"""The command line: what it prints, and one line with exit code 2 for each kind of mistake."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lsr import LsrConfig
from lsr import __main__ as commands
from lsr.__main__ import main
from lsr.convert.writing import replace_folder
from lsr.errors import InputError
from lsr.tuner.files import WEIGHTS
from tests.kit import edit, refused, said, write
from tests.lsr.saved import save_with_base


def export(to="lora", *more):
    return ("export", "adapter", "--to", to, "-o", "out", *more)


def differences(text):
    """The differences of outputs that a command has printed, by format."""
    actual = re.findall(r"^(.*): differs by (\S+) at most$", text, re.MULTILINE)
    return {name: float(difference) for name, difference in actual}


@pytest.mark.parametrize(
    ("name", "fields", "to"),
    [
        ("roberta", {"bias": "all"}, "lora"),
        ("gpt2", {"init_weights": "principal", "target_modules": "all-linear"}, "merged"),
        ("bert", {"task_type": None, "rank_shape": (4,), "separation_rank": None, "train": "core"}, "merged"),
    ],
)
def test_the_outputs_of_an_export_are_those_of_the_adapter(name, fields, to, tmp_path, monkeypatch):
    save_with_base(tmp_path, name, **fields)
    monkeypatch.chdir(tmp_path)
    actual = differences(said(main, *export(to)))
    names = {"lora": ["lora, unmerged", "lora, merged by PEFT"], "merged": ["merged"]}
    assert list(actual) == names[to]
    assert max(actual.values()) < 1e-5


WIDE = {"d_model": 24, "vocab_size": 64, "eos_token_id": 2, "decoder_start_token_id": 1, "pad_token_id": 1}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BOTH = WIDE | LAYERS | {"encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
T5 = T5Config(**WIDE, d_kv=12, d_ff=40, num_layers=1, num_decoder_layers=1, num_heads=2)


def save_query(model, **fields):
    """Save a model at base/ and an adapter of its layers named like queries at adapter/."""
    model.save_pretrained("base")
    model.name_or_path = "base"
    config = LsrConfig(target_modules=["q_proj"], rank_shape=(2,), init_weights=False, seed=0)
    get_peft_model(model, replace(config, **fields)).save_pretrained("adapter")


@pytest.mark.parametrize(
    ("model_class", "config", "targets"),
    [(BartForSequenceClassification, BartConfig(**BOTH), ["q_proj"]), (T5ForSequenceClassification, T5, ["q"])],
    ids=["bart", "t5"],
)
def test_a_classifier_that_reads_at_the_end_token_is_compared(model_class, config, targets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = ["classification_head"]
    save_query(model_class(config), task_type="SEQ_CLS", target_modules=targets, modules_to_save=head)
    assert 0 <= differences(said(main, *export("merged")))["merged"] < 1e-5


def test_a_model_that_does_not_read_token_ids_alone_is_exported_without_a_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_query(WhisperForConditionalGeneration(WhisperConfig(**BOTH)))
    assert "the outputs are not compared: the model does not read token ids alone" in said(main, *export())


def test_a_rounded_export_shows_its_error_and_its_difference(beside):
    text = said(main, *export("lora", "--dtype", "bfloat16"))
    assert 1e-4 < float(re.search(r"error of the update in bfloat16: ([\d.e-]+) in total", text)[1]) < 0.05
    assert 0 < differences(text)["lora, merged by PEFT"] < 0.05
    assert {tensor.dtype for tensor in load_file("out/" + WEIGHTS).values()} == {torch.bfloat16}


def test_a_merged_checkpoint_has_the_names_of_the_task_and_says_that_no_tokenizer_was_there(beside):
    write("adapter/task.json", {"labels": ["bad", "fair", "good"]})
    assert "no tokenizer in the folder of the adapter or of its base model" in said(main, *export("merged"))
    config = json.loads((beside / "out/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert json.loads((beside / "out/task.json").read_text()) == {"labels": ["bad", "fair", "good"]}
    write("adapter/task.json", {"labels": ["bad", "good"]})
    line = refused(main, export("merged", "--force"))
    assert line.endswith("adapter/task.json: labels must be 3 different names, got bad good")


def test_a_lora_keeps_the_task_and_needs_no_base_and_says_so(beside):
    write("adapter/task.json", {"labels": ["bad", "fair", "good"]})
    said(main, *export())
    with_base = load_file(beside / "out" / WEIGHTS)
    assert json.loads((beside / "out/task.json").read_text()) == {"labels": ["bad", "fair", "good"]}
    line = said(main, "import", "out", "-o", "back")
    assert re.fullmatch(r"back: LSR with rank_shape \[4\], [\d,]+ bytes\n", line)
    assert (beside / "back/task.json").read_bytes() == (beside / "out/task.json").read_bytes()
    refused(main, ["import", "adapter", "-o", "new"], says="adapter: an adapter of the method LSR; needed: LORA")
    shutil.rmtree("base")
    last = said(main, *export("lora", "--force")).splitlines()[-1]
    assert last == "the outputs are not compared: without its base model: base model ./base: no such folder"
    actual = load_file(beside / "out" / WEIGHTS)
    assert all(torch.allclose(actual[key], value, atol=1e-7) for key, value in with_base.items())
    refused(main, export("merged", "--force"), says="base model ./base: no such folder")


def test_force_replaces_an_export_and_nothing_of_somebody_else(beside):
    said(main, *export())
    before = (beside / "out" / WEIGHTS).read_bytes()
    (beside / "plain").touch()
    assert {path.stat().st_mode for path in (beside / "out").iterdir()} == {(beside / "plain").stat().st_mode}
    refused(main, export(), says="out: exists; choose another folder, or replace it with --force")
    (beside / "out/config.json").touch()  # of a checkpoint that was there
    said(main, *export("lora", "--force"))
    assert (beside / "out" / WEIGHTS).read_bytes() == before
    assert not (beside / "out/config.json").exists()
    for name in ("thesis.tex", ".git"):
        (beside / "out" / name).touch()
        held = f"out: holds {name}, which lsr does not write: not overwritten"
        refused(main, export("merged", "--force"), says=held)
        (beside / "out" / name).unlink()
    (beside / "notes").mkdir()
    (beside / "notes/ideas.md").touch()
    words = ("export", "adapter", "--to", "lora", "-o", "notes", "--base", "base", "--force")
    refused(main, words, says="notes: not a folder written by lsr: not overwritten")


def test_what_fails_half_way_leaves_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()

    def write_half(folder):
        with replace_folder(folder) as new:
            (new / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


@pytest.mark.parametrize(
    ("words", "part", "value", "message"),
    [
        (["quantize", "adapter", "--to", "3bit"], "", 1, "adapter: there is no floating-point tensor to quantize"),
        (["compress", "adapter"], "factor", 3e19, "over the examples, is not finite"),
        (["bank", "--from", "adapter", "--precision", "bfloat16"], "classifier", 3.4e38, "overflows in bfloat16"),
        (["export", "adapter", "--to", "lora"], "none", 1.0, "out: does not fit"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(words, part, value, message, beside, monkeypatch):
    made = load_file("adapter/" + WEIGHTS)
    changed = {key: torch.full(its.shape, value) for key, its in made.items() if part in key}
    if part == "classifier":  # were all of it so large, a sum could overflow in float32, depending on the processor
        changed = {key: its * (torch.arange(its.numel()).view(its.shape) == 0) for key, its in changed.items()}
    edit("adapter/" + WEIGHTS, **changed)
    real = commands.load_adapter  # what is written of a sound adapter can be read, so one reads otherwise

    def load(folder, *options):
        return real(folder, *options) if folder.name == "adapter" else misfit(folder)

    monkeypatch.setattr(commands, "load_adapter", load)
    before = sorted(beside.rglob("*"))
    refused(main, [*words, "-o", "out"], says=message)
    assert sorted(beside.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["bank", "--from", "adapter"],
        ["export", "adapter", "--to", "lora"],
        ["export", "adapter", "--to", "merged"],
        ["quantize", "adapter", "--to", "8bit"],
        ["compress", "adapter"],
    ],
)
def test_a_head_without_rows_is_refused(words, beside):
    made = load_file("adapter/" + WEIGHTS)
    edit("adapter/" + WEIGHTS, **{key: value[:0] for key, value in made.items() if "classifier" in key})
    refused(main, [*words, "-o", "out"], says="has no entries")
    assert not (beside / "out").exists()


def misfit(folder):
    raise InputError(f"{folder}: does not fit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "base", "-o", "out"), "base: not an adapter folder, adapter_config.json is missing"),
        (export("lora", "-o", "adapter", "--force"), "adapter: would replace adapter, which is read"),
        (export("lora", "-o", ".", "--force"), ".: would replace"),
        (export("lora", "-o", "file", "--force"), "file: not a folder: not overwritten"),
        (export("lora", "-o", "file/out"), "file/out: cannot be written: Not a directory"),
    ],
)
def test_a_mistake_is_one_line(words, message, beside):
    (beside / "file").touch()
    before = sorted(beside.rglob("*"))
    refused(main, words, says=message)
    assert sorted(beside.rglob("*")) == before
