"""The file of a bank: read as it was written, one line for what is none, and the command that makes it."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lsr import AdapterBank, round_adapter
from lsr.__main__ import main
from lsr.algebra.rounding import PRECISIONS
from lsr.serve import file
from tests.capabilities.models import tiny
from tests.kit import refused, said, write
from tests.lsr.saved import FORMS, asked, save, save_lora, says
from tests.lsr.subjects import DENSE

SHOWN = ("diagonal cores on shared frames", "factors", "a head of two modules")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that returns a bank of a form and its folder, which nobody changes."""
    done = {}

    def of(form):
        if form not in done:
            model, fields = FORMS[form]
            root = tmp_path_factory.mktemp("banks")
            bank = AdapterBank(tiny(model))
            for seed, name in enumerate("abc"):
                bank.add(name, save(root / name, model, seed, **fields), note={"labels": [name, "other", "more"]})
            bank.remove("b")
            bank.save(root / "bank")
            done[form] = bank, root
        return done[form]

    return of


@pytest.mark.parametrize("form", SHOWN)
def test_a_bank_is_read_as_it_was_written_and_takes_more(form, saved):
    bank, root = saved(form)
    model, _ = FORMS[form]
    before = (root / "bank" / file.FILE).read_bytes()
    again = AdapterBank.load(tiny(model), root / "bank")
    names = ["c", "a", "__base__", "c"]
    assert again.names == ["a", "c"]
    assert again.notes == {name: {"labels": [name, "other", "more"]} for name in "ac"}
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("b", root / "b")
    torch.testing.assert_close(asked(again, ["b", "b", "c", "c"])[1], says(model, root / "b", dtype=torch.float32)[1])
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("a", root / "b", replace=True)
    assert (root / "bank" / file.FILE).read_bytes() == before  # memory-mapped, but a copy of its own
    refused(bank.save, root / "bank", says="exists; choose another folder")


def test_shared_frames_are_in_the_file_once_and_stay_shared(saved):
    bank, root = saved("diagonal cores on shared frames")
    tensors = load_file(root / "bank" / file.FILE)
    assert sorted(value.numel() for name, value in tensors.items() if name.startswith(file.FRAMES)) == [4 * 24] * 4
    cores = [value.shape for name, value in tensors.items() if name.endswith("cores/values")]
    assert cores == 4 * [(1 + 2, 4)]  # a row of zeros, and one of each adapter
    assert tensors["heads/classifier/weight/values"].shape == (1 + 2 * 3, 24)
    again = AdapterBank.load(tiny("bert"), root / "bank")
    assert len({layer.frames for layer in again.layers.values()}) == 2
    assert again.nbytes < bank.nbytes  # which has room for more


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_in_few_bits_says_what_rounded_folders_say(precision, tmp_path):
    """Where rows have 64 entries or more; shorter ones are in bfloat16."""
    bank = AdapterBank(tiny("bert-wide"), precision=precision)
    whole = AdapterBank(tiny("bert-wide"))
    save(tmp_path / "a", "bert-wide", **DENSE)
    save_lora(tmp_path / "b", "bert-wide", seed=2)
    for name in "ab":
        round_adapter(tmp_path / name, tmp_path / f"rounded-{name}", precision)
        bank.add(name, tmp_path / name)
        whole.add(name, tmp_path / f"rounded-{name}")
    names = ["b", "a", "__base__", "a"]
    expected = asked(whole, names)
    torch.testing.assert_close(asked(bank, names), expected, rtol=1e-3, atol=1e-4)
    bank.save(tmp_path / "bank")
    again = AdapterBank.load(tiny("bert-wide"), tmp_path / "bank")
    assert torch.equal(asked(again, names), asked(bank, names))
    if precision not in ("float32", "bfloat16"):
        assert again.nbytes < whole.nbytes / 2


# Mistakes


def damaged(root, folder, change):
    """Write a bank with another header or other tensors."""
    with safe_open(root / "bank" / file.FILE, framework="pt") as content:
        header = json.loads(content.metadata()[file.HEADER])
    tensors = load_file(root / "bank" / file.FILE)
    change(header, tensors)
    folder.mkdir()
    save_file(tensors, folder / file.FILE, metadata={file.HEADER: json.dumps(header)})
    return folder


QUERY = "layers/bert.encoder.layer.0.attention.self.query/directions"
HEAD = "heads/classifier/bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(precision="5bit"), "precision must be one of float32, bfloat16"),
        (lambda header, tensors: header.update(frames={QUERY.split("/")[1]: ["x", 4]}), "frames/x/a' is missing"),
        (lambda header, tensors: header.pop("notes"), "'notes' is missing"),
        (lambda header, tensors: header["notes"].update(b={}), "do not fit the base model or the names"),
        (lambda header, tensors: tensors[f"{QUERY}/values"].fill_(torch.nan), "values that are not"),
        (
            lambda header, tensors: tensors.update({f"{QUERY}/values": torch.ones(9, 47)}),
            "do not fit the base model or the names",
        ),
        (lambda header, tensors: tensors.pop(f"{QUERY}/values"), "directions/values' is missing"),
        (lambda header, tensors: header["layers"].append("x"), "'x' is missing"),
        (lambda header, tensors: tensors[f"{QUERY}/slots"].fill_(1000), "do not fit the base model or the names"),
        (lambda header, tensors: header["notes"].update(a=5), "'int' object is not iterable"),
        (lambda header, tensors: tensors.pop(f"{HEAD}/slots"), "bias/slots' is missing"),
    ],
)
def test_a_file_that_is_no_bank_is_refused_in_one_line(change, message, saved, tmp_path):
    _, root = saved("factors")
    folder = damaged(root, tmp_path / "broken", change)
    refused(AdapterBank.load, tiny("bert"), folder, says=message)


def test_a_file_that_is_cut_off_missing_or_another_is_refused(saved, tmp_path):
    _, root = saved("factors")
    whole, another = (root / "bank" / file.FILE).read_bytes(), (root / "a/adapter_model.safetensors").read_bytes()
    for content, reason in ((None, "No such file"), (whole[:-9], ""), (another, "'lsr_bank_5'")):
        if content is not None:
            write(tmp_path / file.FILE, content)
        says = f"{file.FILE}: no bank of this version, or cut off: {reason}"
        refused(AdapterBank.load, tiny("bert"), tmp_path, says=says)


# The command


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder `users` with two adapters and their base model beside it, which nobody changes."""
    root = tmp_path_factory.mktemp("command")
    tiny("bert").save_pretrained(str(root / "base"))
    for seed, name in enumerate(("anna", "ben")):
        save(root / "users" / name, seed=seed, base="./base", **FORMS["diagonal cores on shared frames"][1])
    write(root / "users/ben/task.json", {"labels": ["no", "maybe", "yes"]})
    return root


@pytest.fixture
def here(originals, tmp_path, monkeypatch):
    shutil.copytree(originals, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    "words",
    [("users", "-o", "bank"), ("users/anna", "users/ben", "-o", "bank", "--precision", "8bit", "--base", "base")],
)
def test_adapters_become_one_file(words, here):
    first, *kinds = said(main, "bank", "--from", *words).splitlines()
    size = (here / "bank" / file.FILE).stat().st_size
    assert first == f"bank: 2 adapters in {'8bit' if '8bit' in words else 'float32'}, {size:,} bytes"
    tensors = load_file(here / "bank" / file.FILE)
    for kind in (file.LAYERS, file.HEADS, file.FRAMES):
        held = sum(value.nbytes for name, value in tensors.items() if name.startswith(kind))
        assert f"{kind}: {held:,} bytes, {held / 2:,.0f} an adapter" in kinds
    bank = AdapterBank.load(tiny("bert"), here / "bank")
    assert bank.notes == {"anna": {}, "ben": {"labels": ["no", "maybe", "yes"]}}
    assert all(layer.frames is not None for layer in bank.layers.values())
    found = asked(bank, ["ben", "anna"])
    for row, name in enumerate(("ben", "anna")):
        expected = says("bert", here / "users" / name, 2, torch.float32)[row]
        torch.testing.assert_close(found[row], expected, rtol=0.02, atol=0.02 if "8bit" in words else 1e-6)


def test_a_mistake_is_one_line(here):
    shutil.copytree("users/anna", "others/anna")
    for words, message in (
        (("users", "others", "-o", "bank"), "others/anna: an adapter named 'anna' is in the bank"),
        (("users", "-o", "users", "--force"), "would replace users"),
    ):
        refused(main, ("bank", "--from", *words), says=message)
        assert not (here / "bank").exists()
