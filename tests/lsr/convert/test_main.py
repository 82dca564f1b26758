"""The command line: what it prints, and one line with exit code 2 for each mistake."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from lsr import LsrConfig
from lsr.__main__ import main
from lsr.convert.files import InputError, writing
from tests import forked
from tests.capabilities.checks import stir
from tests.capabilities.models import BERT_SIZES, VOCABULARY, tiny
from tests.lsr.saved import CASES, USUAL, save, train

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """An adapter of BERT's with its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("originals")
    save("bert", folder)
    return folder


@pytest.fixture
def folder(originals, tmp_path, monkeypatch):
    """A working directory with adapter/ and base/."""
    for name in ("adapter", "base"):
        shutil.copytree(originals / name, tmp_path / name)
    edit(tmp_path / "adapter" / CONFIG, base_model_name_or_path="./base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ok(capsys, *words):
    """Run a command that should work; return what it prints."""
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def mistake(capsys, *words):
    """Run a command that should be refused; return its one line."""
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    assert code == 2, printed.out
    (line,) = printed.err.splitlines()
    return line


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def export(to="lora", *more):
    return ("export", "adapter", "--to", to, "-o", "out", *more)


# What it prints


@pytest.mark.parametrize(
    "case",
    [
        *("a head of one layer", "a head of two layers", "transposed weights", "folded", "a language model"),
        *("one factor", "a core between padded factors", "shared and transposed", "shared, rounded to int8"),
    ],
)
@pytest.mark.parametrize("to", ["lora", "merged"])
def test_the_outputs_of_an_export_are_those_of_the_adapter(case, to, tmp_path, capsys, monkeypatch):
    name, fields = CASES[case]
    save(name, tmp_path, **fields)
    monkeypatch.chdir(tmp_path)
    lines = ok(capsys, *export(to)).splitlines()
    header = next(i for i, line in enumerate(lines) if re.fullmatch(r"format +max \|difference\|", line))
    found = {line.rsplit(maxsplit=1)[0]: float(line.rsplit(maxsplit=1)[1]) for line in lines[header + 1 :]}
    names = {"lora": ["lora, float32, unmerged", "lora, float32, merged by PEFT"], "merged": ["merged, float32"]}
    assert list(found) == names[to]
    assert max(found.values()) < 1e-5


def test_a_rounded_export_shows_its_error_and_its_difference(folder, capsys):
    text = ok(capsys, *export("lora", "--dtype", "bfloat16"))
    assert 1e-4 < float(re.search(r"error of the update in bfloat16: ([\d.e-]+) in total", text)[1]) < 0.05
    assert 0 < float(re.search(r"merged by PEFT +(\S+)", text)[1]) < 0.05
    assert {tensor.dtype for tensor in load_file("out/" + WEIGHTS).values()} == {torch.bfloat16}


def test_a_tied_head_that_cannot_be_merged_is_said(tmp_path, capsys, monkeypatch):
    save("gpt2-causal", tmp_path, task_type="CAUSAL_LM", target_modules=["lm_head"])
    monkeypatch.chdir(tmp_path)
    said = [line for line in ok(capsys, *export()).splitlines() if "this is no rounding" in line]
    assert [line.partition(":")[0] for line in said] == ["lora, float32, merged by PEFT"]


def test_it_runs_as_a_module(folder):
    words = [forked.scripts() / "python", "-m", "lsr", *export()]
    run = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "max |difference|" in run.stdout


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in ("export", "inspect", "frames", "bank"))])
def test_help_leaves_with_zero(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert "usage: python -m lsr" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--base", "./base"]])
def test_the_report_is_a_table_of_layers(folder, capsys, more):
    lines = ok(capsys, "inspect", "adapter", *more).splitlines()
    assert lines[0] == "adapter: 4 layers of bert.encoder.layer, base ./base"
    assert re.split(r"  +", lines[1])[:3] == ["layer", "out x in", "rank"]
    assert [line.split()[0] for line in lines[2:6]] == [
        f"{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "value")
    ]
    assert re.search(r"total: 480 trained, 480 stored, 480 effective, 768 as LoRA; heads and biases 75", lines[6])
    assert lines[7] == "κ: norm of the terms over norm of their sum; rounding errors grow by as much"
    assert len(lines) == 8


def test_the_report_fits_the_terminal(folder, capsys, monkeypatch):
    whole = ok(capsys, "inspect", "adapter").splitlines()
    assert max(map(len, whole[1:6])) > 100
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = ok(capsys, "inspect", "adapter").splitlines()
    assert max(map(len, lines[1:6])) <= 80
    assert re.split(r"  +", lines[1])[:4] == ["layer", "rank", "terms", "trained"]
    hidden = "out x in, stored, effective, κ(A), κ(B), singular values, LoRA"
    assert lines[8] == f"a wider terminal also shows {hidden}; --json shows everything"
    monkeypatch.setenv("COLUMNS", "20")
    lines = ok(capsys, "inspect", "adapter").splitlines()
    assert re.split(r"  +", lines[1]) == ["layer", "rank", "trained", "κ(ΔW)", "‖ΔW‖/‖W‖"]
    monkeypatch.setenv("COLUMNS", "200")
    assert ok(capsys, "inspect", "adapter").splitlines() == whole


def test_the_report_as_json_has_all_of_it(folder, capsys):
    found = json.loads(ok(capsys, "inspect", "adapter", "--json"))
    layer = found["layers"]["bert.encoder.layer.0.attention.self.query"]
    assert (layer["out_features"], layer["in_features"], layer["rank_shape"]) == (24, 24, [2, 2])
    assert len(layer["singular_values"]) == layer["lora_rank"] == 4
    assert found["base_problem"] is None


def test_the_report_warns_of_terms_that_cancel(folder, capsys):
    path = folder / "adapter" / WEIGHTS
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("factor_A1"))
    tensors[name][1] = -tensors[name][0] * (1 + 1e-5)
    second = name.replace("factor_A1", "factor_A2")
    tensors[second][1] = tensors[second][0]
    tensors[name][:2] *= 100
    save_file(tensors, path)
    text = ok(capsys, "inspect", "adapter")
    assert re.search(
        r"bfloat16 would lose \d+% of the update in bert\.encoder\..*: its terms cancel; keep float32", text
    )


def test_the_report_without_a_base_says_why(folder, capsys):
    shutil.rmtree("base")
    text = ok(capsys, "inspect", "adapter")
    assert "without its base model, ‖W‖ is unknown: base model ./base: no such folder" in text


# A checkpoint for a server


def save_tokenizer(path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(str(path))


@pytest.mark.parametrize("place", ["adapter", "base"])
def test_a_merged_checkpoint_brings_the_tokenizer_along(place, folder, capsys):
    save_tokenizer(folder / place)
    assert "no tokenizer" not in ok(capsys, *export("merged"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (folder / "out").iterdir()
    }


def test_without_a_tokenizer_it_says_so(folder, capsys):
    assert "no tokenizer beside the adapter or its base model" in ok(capsys, *export("merged"))


def test_labels_are_named_in_the_checkpoint(folder, capsys):
    ok(capsys, *export("merged", "--labels", "bad", "fair", "good"))
    config = json.loads((folder / "out/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_others_may_read_what_is_written(folder, capsys):
    ok(capsys, *export())
    modes = {path.stat().st_mode for path in (folder / "out").iterdir()}
    (folder / "plain").touch()
    assert modes == {(folder / "plain").stat().st_mode}


# The base model


def test_a_base_without_a_head_gets_one_of_the_adapters_labels(folder, capsys):
    plain = tiny("bert").bert
    plain.config.num_labels = 2  # what a configuration says that says nothing
    plain.save_pretrained("other")
    edit(folder / "adapter" / CONFIG, base_model_name_or_path="nowhere/no-such-model")
    assert "merged, float32" in ok(capsys, *export("merged", "--base", "other"))
    assert len(json.loads((folder / "out/config.json").read_text())["id2label"]) == 3


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_a_base_with_a_head_of_other_labels_gets_the_adapters(to, folder, capsys):
    ok(capsys, *export(to))
    name = "model.safetensors" if to == "merged" else WEIGHTS
    before = load_file(folder / "out" / name)
    base_of(labels=5)(folder)
    ok(capsys, *export(to, "--force"))
    after = load_file(folder / "out" / name)
    assert after.keys() == before.keys()
    heads = [key for key in before if "classifier" in key]
    assert heads
    assert all(torch.equal(after[key], before[key]) for key in heads)


def test_a_model_of_images_is_exported_without_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained("base")
    base = ViTForImageClassification.from_pretrained("./base")
    fields = {
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["classifier"],
        "separation_rank": 2,
        "seed": 0,
    }
    model = stir(get_peft_model(base, LsrConfig(**fields)).eval())
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixels).logits
    model.save_pretrained("adapter")
    for to in ("lora", "merged"):
        text = ok(capsys, *export(to, "--force"))
        assert text.splitlines()[-1] == "the model reads no token ids, so the outputs are not compared"
        found = ViTForImageClassification.from_pretrained("./base" if to == "lora" else "./out")
        if to == "lora":
            found = PeftModel.from_pretrained(found, "out")
        with torch.no_grad():
            assert torch.allclose(found.eval()(pixels).logits, expected, atol=1e-5)
        shutil.rmtree("out")


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("bias", ["all", "lsr_only"])
def test_trained_biases_beside_a_head_are_exported(name, bias, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(name, tmp_path, bias=bias, separation_rank=2)
    text = ok(capsys, *export())
    assert float(re.search(r"unmerged +(\S+)", text)[1]) < 1e-6


def test_a_base_in_half_precision_is_taken_as_it_is(folder, capsys):
    tiny("bert").bfloat16().save_pretrained("base")
    text = ok(capsys, *export())
    assert float(re.search(r"unmerged +(\S+)", text)[1]) < 1e-6


def test_a_folded_start_on_a_base_in_half_precision_is_subtracted_again(folder, capsys):
    base = tiny("bert").bfloat16()
    base.save_pretrained("base")
    config = LsrConfig(**USUAL, init_weights="principal")
    model = train(get_peft_model(base, config))
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("adapter", save_embedding_layers=False)
    text = ok(capsys, *export())
    assert float(re.search(r"unmerged +(\S+)", text)[1]) < 1e-5


# Mistakes


def break_nothing(folder):
    pass


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def cut(name, size):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


def write(name, content):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def pipe(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def device(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return change


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def configure(**changes):
    return lambda folder: edit(folder / "adapter" / CONFIG, **changes)


def resolve(**changes):
    """Change what the file says of the shapes of most layers."""

    def change(folder):
        path = folder / "adapter" / CONFIG
        resolved = json.loads(path.read_text())["resolved"]
        edit(path, resolved={**resolved, "usual": {**resolved["usual"], **changes}})

    return change


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def as_pickle(name):
    def change(folder):
        (folder / "adapter" / WEIGHTS).unlink()
        (folder / "adapter" / name).write_bytes(pickle.dumps(Explosive()))

    return change


def with_tensors(change):
    def apply(folder):
        path = folder / "adapter" / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def poison(tensors):
    next(value for name, value in tensors.items() if "factor_A1" in name)[0, 0, 0] = float("nan")


def drop(ending):
    return lambda tensors: tensors.pop(next(name for name in tensors if name.endswith(ending)))


def relabel(tensors):
    tensors["base_model.model.classifier.bias"] = torch.zeros(4)


def as_lora(folder):
    model = get_peft_model(tiny("bert"), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    shutil.rmtree(folder / "adapter")
    model.save_pretrained("adapter", save_embedding_layers=False)


def base_of(width=24, labels=3, **more):
    sizes = {**BERT_SIZES, "num_labels": labels, **more}

    def change(folder):
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(hidden_size=width, **sizes)).save_pretrained("base")

    return change


def half_a_base(folder):
    BertModel(BertConfig(hidden_size=24, **BERT_SIZES), add_pooling_layer=False).save_pretrained("base")


def base_as_pickle(folder):
    torch.save(load_file("base/model.safetensors"), "base/pytorch_model.bin")
    (folder / "base/model.safetensors").unlink()


def of_dtype(dtype):
    def change(tensors):
        name = next(name for name in tensors if "layer.0.attention.self.query.lsr_adapters.factor_A1" in name)
        tensors[name] = tensors[name].to(dtype)

    return change


def emptied(tensors):
    name = next(name for name in tensors if "factor_A1" in name)
    tensors[name] = tensors[name][:0]


def base_with_code(folder):
    """A base that brings its own code, as `auto_map` says."""
    (folder / "base/evil.py").write_text("import pathlib; pathlib.Path('exploded').touch()\n")
    edit(folder / "base/config.json", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}, model_type="evil")


def of_no_task(name):
    mapping = {"parent_library": "transformers.utils.hub", "base_model_class": name}
    return configure(task_type=None, auto_mapping=mapping)


ENDLESS = "([a-z0-9.]+)+X"  # on a name of 46 characters

MISTAKES = {  # what is wrong: what is done to the folder, the words after export, what the line says
    "no folder": (shutil.rmtree, None, "adapter: no such folder"),
    "no adapter": (remove(f"adapter/{CONFIG}"), None, f"adapter: not an adapter folder, {CONFIG} is missing"),
    "no JSON": (write(f"adapter/{CONFIG}", b"{"), None, f"adapter/{CONFIG}: not valid JSON"),
    "binary JSON": (write(f"adapter/{CONFIG}", b"\xff\xfe\x00"), None, f"adapter/{CONFIG}: not valid JSON"),
    "another JSON": (write(f"adapter/{CONFIG}", b"[]"), None, f"adapter/{CONFIG}: not an adapter's configuration"),
    "another method": (as_lora, None, "adapter: an adapter of the method LORA; needed: LSR"),
    "a bad field": (configure(rank_shape=[0]), None, f"adapter/{CONFIG}: rank_shape must hold one or more ranks >= 1"),
    "a rank that is true": (configure(rank_shape=[True, 2]), None, "rank_shape must hold one or more ranks >= 1"),
    "half a rank": (configure(rank_shape=[2.5, 2]), None, "rank_shape must hold one or more ranks >= 1, got [2.5, 2]"),
    "a huge rank": (
        configure(rank_shape=[10_000_000, 2]),
        None,
        "layer 'bert.encoder.layer.0.attention.self.query': its configuration says 360,000,048 entries, but the file "
        "holds",
    ),
    "values that are true": (with_tensors(of_dtype(torch.bool)), None, "factor_A1 holds values of bool; needed: float"),
    "complex values": (with_tensors(of_dtype(torch.complex64)), None, "factor_A1 holds values of complex64; needed:"),
    "whole numbers": (with_tensors(of_dtype(torch.int64)), None, "factor_A1 is of int64, not float32"),
    "no values": (with_tensors(emptied), None, "factor_A1 holds no values; needed: float64"),
    "a base with code": (base_with_code, None, "base model BASE: cannot be loaded"),
    "a base that is no model": (of_no_task("cached_file"), None, "cached_file, which is not a model class"),
    "a base that is a number": (
        configure(base_model_name_or_path=3),
        None,
        f"adapter/{CONFIG}: base_model_name_or_path: must be a string or null, got 3",
    ),
    "a long name": (configure(peft_type="x" * 1_000_000), None, "adapter: an adapter of the method xxx"),
    "a large file": (
        configure(task_type="x" * 8_000_000),
        None,
        f"adapter/{CONFIG}: a file of over 8,000,000 bytes; at most that is allowed",
    ),
    "a deep file": (write(f"adapter/{CONFIG}", b"[" * 100_000), None, f"adapter/{CONFIG}: not valid JSON: too deep"),
    "a number of 5,000 digits": (
        write(f"adapter/{CONFIG}", b'{"alpha": ' + b"1" * 5000 + b"}"),
        None,
        f"adapter/{CONFIG}: not valid JSON: Exceeds the limit",
    ),
    "a pipe": (pipe(f"adapter/{CONFIG}"), None, f"adapter/{CONFIG}: not a file"),
    "a pipe of weights": (pipe(f"adapter/{WEIGHTS}"), None, f"adapter/{WEIGHTS}: not a file"),
    "an endless file": (device(f"adapter/{CONFIG}"), None, f"adapter/{CONFIG}: not a file"),
    "endless weights": (device(f"adapter/{WEIGHTS}"), None, f"adapter/{WEIGHTS}: not a file"),
    "no number": (configure(alpha=float("nan")), None, f"adapter/{CONFIG}: not valid JSON: NaN is not a number"),
    "an infinite scale": (
        lambda folder: replace(folder / "adapter" / CONFIG, '"alpha": 7', '"alpha": 1e999'),
        None,
        f"adapter/{CONFIG}: alpha must be a positive number, got inf",
    ),
    "an expression that never ends": (
        configure(rank_pattern={ENDLESS: [2, 2]}),
        None,
        f"adapter: {WEIGHTS} and {CONFIG} do not fit together: rank_pattern: '{ENDLESS}' takes over 0.5 s on the names",
    ),
    "targets that never end": (
        configure(target_modules=ENDLESS),
        None,
        f"adapter: {WEIGHTS} and {CONFIG} do not fit together: target_modules: '{ENDLESS}' takes over 0.5 s",
    ),
    "a bad type": (configure(rank_shape=None), None, f"adapter/{CONFIG}: "),
    "broken shapes": (
        configure(resolved={"usual": {"in_shape": 3}}),
        None,
        f"adapter/{CONFIG}: resolved: not what a saved adapter says of its layers",
    ),
    "shapes of no layer": (
        resolve(in_shape=[2, 2]),
        None,
        f"adapter/{CONFIG}: resolved: ",
    ),
    "a bad task": (configure(task_type="CHESS"), None, "Invalid task type: 'CHESS'. Must be one of"),
    "no weights": (remove(f"adapter/{WEIGHTS}"), None, f"adapter: {WEIGHTS} is missing"),
    "cut off": (cut(f"adapter/{WEIGHTS}", 2000), None, f"adapter/{WEIGHTS}: corrupt or cut off"),
    "cut off in its header": (cut(f"adapter/{WEIGHTS}", 20), None, f"adapter/{WEIGHTS}: corrupt or cut off"),
    "empty": (cut(f"adapter/{WEIGHTS}", 0), None, f"adapter/{WEIGHTS}: corrupt or cut off"),
    "no safetensors": (write(f"adapter/{WEIGHTS}", b"\x80\x04" * 99), None, f"adapter/{WEIGHTS}: corrupt or cut off"),
    "a pickle": (as_pickle("adapter_model.bin"), None, "adapter/adapter_model.bin: a pickle, which can run any code"),
    "another pickle": (as_pickle("adapter_model.pt"), None, "adapter/adapter_model.pt: a pickle"),
    "not finite": (with_tensors(poison), None, "factor_A1 holds values that are not finite"),
    "a factor is missing": (
        with_tensors(drop("1.attention.self.value.lsr_adapters.factor_B2")),
        None,
        "factor_B2 is missing",
    ),
    "a head is missing": (with_tensors(drop("classifier.bias")), None, "classifier.bias"),
    "another head": (with_tensors(relabel), None, "classifier.bias is 4 in the adapter, but 3 here"),
    "other terms": (
        configure(separation_rank=2),
        None,
        f"adapter: {WEIGHTS} and {CONFIG} do not fit together: layer 'bert.encoder.layer.0.attention.self.query': "
        "lsr_adapters.default.factor_A1 is 3 x 2 x 6, but its configuration says 2 x 2 x 6",
    ),
    "a start of another initialization": (
        configure(init_weights="principal"),
        None,
        "resolved: base_hashes has no entry for layer 'bert.encoder.layer.0.attention.self.query'",
    ),
    "shapes of other ranks": (
        configure(rank_shape=[2, 2, 1]),
        None,
        "layer 'bert.encoder.layer.0.attention.self.query': in_shape must hold 3 sizes with a product from 24 to "
        "48, such as [3, 2, 4], got [6, 4]",
    ),
    "another width": (
        base_of(width=32),
        None,
        "adapter: layer 'bert.encoder.layer.0.attention.self.query': the adapter is for a layer of 24 x 24, and "
        "this one is 32 x 32",
    ),
    "fewer layers": (
        base_of(num_hidden_layers=1),
        None,
        "adapts a layer 'bert.encoder.layer.1.attention.self.query', which the base model does not have",
    ),
    "half a base": (
        half_a_base,
        None,
        "base model BASE: bert.pooler.dense.bias is missing, and the adapter does not hold it either",
    ),
    "a base of a million layers": (
        lambda folder: edit(folder / "base/config.json", num_hidden_layers=1_000_000),
        None,
        "base model BASE: config.json asks for more than 2,000 modules, the limit",
    ),
    "a base of endless words": (
        lambda folder: edit(folder / "base/config.json", vocab_size=10**9),
        None,
        "base model BASE: config.json asks for 24,0",
    ),
    "no base": (configure(base_model_name_or_path=None), None, "names no base model; name it with --base"),
    "a base that is nowhere": (
        configure(base_model_name_or_path="nowhere/no-such-model"),
        None,
        "base model nowhere/no-such-model: cannot be loaded",
    ),
    "no such base": (break_nothing, ["--base", "./nowhere"], "base model ./nowhere: no such folder"),
    "a base of pickles": (base_as_pickle, None, "base model BASE: cannot be loaded"),
    "a base that is cut off": (cut("base/model.safetensors", 3000), None, "base model BASE: cannot be loaded"),
    "the folder exists": (
        write("out/notes.txt", b""),
        None,
        "out: exists; choose another folder, or replace it with --force",
    ),
    "not ours to replace": (
        write("out/notes.txt", b""),
        ["--force"],
        "out: holds notes.txt, which is not a file of an adapter or checkpoint, so it is not replaced",
    ),
    "a file": (write("out", b""), ["--force"], "out: not a folder, so it is not replaced"),
    "the adapter itself": (
        break_nothing,
        ["-o", "adapter", "--force"],
        "adapter: would replace adapter, which is read",
    ),
    "a folder around it": (break_nothing, ["-o", ".", "--force"], ".: would replace"),
    "no parent to write": (write("file", b""), ["-o", "file/out"], "file/out: cannot be written"),
    "another format": (break_nothing, ["--to", "onnx"], "--to: invalid choice: 'onnx' (choose from"),
    "another dtype": (break_nothing, ["--dtype", "int8"], "--dtype: invalid choice: 'int8' (choose from"),
    "labels of a LoRA": (break_nothing, ["--labels", "a", "b", "c"], "--labels: an adapter folder cannot hold label"),
    "too few labels": (
        break_nothing,
        ["--to", "merged", "--labels", "a", "b"],
        "--labels: needs 3 different names, one per label of the head, got a b",
    ),
    "labels of one name": (
        break_nothing,
        ["--to", "merged", "--labels", "a", "a", "b"],
        "--labels: needs 3 different names",
    ),
}


NEED_A_BASE = ("no base", "a base that is nowhere", "a base of pickles", "a base that is cut off", "a base with code")


@pytest.mark.parametrize("what", NEED_A_BASE)
def test_a_lora_needs_no_base_and_says_so(what, folder, capsys):
    ok(capsys, *export())
    with_base = load_file(folder / "out" / WEIGHTS)
    change, _, message = MISTAKES[what]
    change(folder)
    lines = ok(capsys, *export("lora", "--force")).splitlines()
    assert lines[-1].startswith("without its base model, the outputs are not compared: ")
    assert message.replace("BASE", "./base") in lines[-1]
    found = load_file(folder / "out" / WEIGHTS)
    assert all(torch.allclose(found[key], value, atol=1e-7) for key, value in with_base.items())


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line(what, folder, capsys, monkeypatch):
    monkeypatch.setattr("lsr.tuner.expressions.SECONDS", 0.5)
    monkeypatch.setattr("lsr.convert.bounds.MOST_MODULES", 2000)
    change, more, message = MISTAKES[what]
    change(folder / "adapter" if change is shutil.rmtree else folder)
    line = mistake(capsys, *export("merged" if what in NEED_A_BASE else "lora", *(more or [])))
    assert line.startswith("python -m lsr export: ")
    assert message.replace("BASE", "./base") in line
    assert not (folder / "exploded").exists()
    assert not list(folder.glob(".*"))
    assert what in ("the folder exists", "not ours to replace", "a file") or not (folder / "out").exists()


@pytest.mark.parametrize(
    "what", ["another method", "cut off", "a pickle", "another width", "not finite", "broken shapes"]
)
def test_inspect_refuses_what_export_refuses(what, folder, capsys):
    change, _, message = MISTAKES[what]
    change(folder)
    assert message.replace("BASE", "./base") in mistake(capsys, "inspect", "adapter")


@pytest.mark.parametrize("stream", ["closed", "full", "ascii"])
def test_an_output_that_takes_little_is_no_traceback(stream, folder):
    shown = {"closed": ">&-", "full": ">/dev/full", "ascii": ""}[stream]
    python = forked.scripts() / "python" if stream == "full" else sys.executable  # which opens its streams itself
    words = f"{python} -m lsr inspect adapter {shown}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == (1 if stream == "full" else 0), run.stderr
    line = "python -m lsr inspect: standard output: No space left on device\n"
    assert run.stderr == (line if stream == "full" else "")
    assert ("\\u03ba(A)" in run.stdout) == (stream == "ascii")


def test_force_replaces_an_export(folder, capsys):
    ok(capsys, *export())
    before = (folder / "out" / WEIGHTS).read_bytes()
    (folder / "out" / "config.json").touch()  # of a checkpoint that was there
    ok(capsys, *export("lora", "--force"))
    assert (folder / "out" / WEIGHTS).read_bytes() == before
    assert not (folder / "out" / "config.json").exists()


def tree(folder):
    """What a folder holds, links as links."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


FOREIGN = {  # what a person has beside files of an adapter: what makes it
    "thesis.tex": lambda path: path.write_text("all of it"),
    ".git": lambda path: path.mkdir(),
    "src": lambda path: path.mkdir(),
    "model.safetensors.py": lambda path: path.write_text("pass"),
    "vocab.txt": lambda path: path.symlink_to("../words.txt"),
    "tokenizer.json": lambda path: path.mkdir(),
}
COMMANDS = {
    "export": export("lora", "--force"),
    "merged": export("merged", "--force"),
    "frames": ("frames", "--from", "adapter", "-o", "out", "--force"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("command", COMMANDS)
def test_force_replaces_no_folder_with_a_file_of_somebody_else(command, name, folder, capsys):
    shutil.copytree(folder / "base", folder / "out")  # a config.json, as any project may have one
    (folder / "out" / CONFIG).write_text("{}")
    FOREIGN[name](folder / "out" / name)
    before = tree(folder)
    line = mistake(capsys, *COMMANDS[command])
    assert f"out: holds {name}, which is not a file of an adapter or checkpoint, so it is not replaced" in line
    assert tree(folder) == before


def test_a_file_that_arrives_while_it_is_written_is_kept(tmp_path):
    (tmp_path / "out").mkdir()

    def write_while_others_do():
        with writing(tmp_path / "out") as new:
            (new / CONFIG).write_text("{}")
            (tmp_path / "out" / "thesis.tex").write_text("all of it")

    with pytest.raises(InputError, match=r"out: holds thesis\.tex"):
        write_while_others_do()
    assert tree(tmp_path) == {"out": None, "out/thesis.tex": b"all of it"}


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 230])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_no_disk_takes_is_refused_before_anything_is_read(command, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [name if word == "out" else word for word in COMMANDS[command]]
    assert " name " in mistake(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CONFIG).write_text("old")
    rename = type(tmp_path).rename

    def interrupted(path, target):
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)

    def write_new():
        with writing(tmp_path / "out") as new:
            (new / CONFIG).write_text("new")

    with pytest.raises(KeyboardInterrupt):
        write_new()
    assert tree(tmp_path) == {"out": None, f"out/{CONFIG}": b"old"}


def test_what_fails_half_way_leaves_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()

    def write_half(folder):
        with writing(folder) as new:
            (new / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]


def test_a_mistake_is_a_value_error_in_python():
    assert issubclass(InputError, ValueError)


# Factors that layers share, and those of another adapter


def shared(tmp_path, monkeypatch, **fields):
    """A working directory with adapter/ and base/; return the tensors of the adapter."""
    name, usual = CASES["shared"]
    save(name, tmp_path, **usual, **fields)
    monkeypatch.chdir(tmp_path)
    return load_file("adapter/" + WEIGHTS)


def query(layer, part):
    return f"base_model.model.bert.encoder.layer.{layer}.attention.self.query.lsr_adapters.{part}"


@pytest.mark.parametrize(
    ("gone", "more", "message"),
    [
        (query(0, "factor_A1"), {}, "query': lsr_adapters.default.factor_A1 is missing"),
        (query(1, "core"), {}, "1.attention.self.query"),
        (None, {query(1, "factor_A1"): query(0, "factor_A1")}, "factor_A1"),
        (query(0, "factor_A1"), {query(1, "factor_A1"): query(0, "factor_A1")}, "factor_A1"),
    ],
    ids=["missing", "no core", "doubled", "in another layer"],
)
@pytest.mark.parametrize("words", [("inspect", "adapter"), export()])
def test_shared_factors_that_are_missing_or_doubled_are_one_line(
    gone, more, message, words, tmp_path, capsys, monkeypatch
):
    tensors = shared(tmp_path, monkeypatch)
    copied = {key: tensors[source].clone() for key, source in more.items()}
    save_file({key: value for key, value in tensors.items() if key != gone} | copied, "adapter/" + WEIGHTS)
    line = mistake(capsys, *words)
    assert message in line
    assert not (tmp_path / "out").exists()


def test_the_report_counts_what_is_shared_once(tmp_path, capsys, monkeypatch):
    shared(tmp_path, monkeypatch)
    text = ok(capsys, "inspect", "adapter")
    assert "total: 64 trained, 448 stored, 448 effective, 768 as LoRA" in text  # four cores, two A and B


def test_frames_that_are_gone_are_one_line(tmp_path, capsys, monkeypatch):
    shared(tmp_path, monkeypatch)
    config = LsrConfig(task_type="SEQ_CLS", rank_shape=(4,), train="core", share="layers", frames="adapter", seed=0)
    base = tiny("bert")
    base.name_or_path = "./base"
    train(get_peft_model(base, config)).save_pretrained("second")
    assert "total: 64 trained, 64 stored, 448 effective" in ok(capsys, "inspect", "second")
    ok(capsys, "export", "second", "--to", "lora", "-o", "out")
    shutil.rmtree("adapter")
    for words in (("inspect", "second"), ("export", "second", "--to", "lora", "-o", "again")):
        assert "frames: no LSR adapter can be read from 'adapter': " in mistake(capsys, *words)
