"""The file of a bank: read as it was written, one line for what is none, and the command that makes it."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.loading.files import InputError
from lsr.serve import file
from tests.capabilities.models import tiny, tokens
from tests.lsr.serve.families import FORMS, save, says

SHOWN = ("diagonal cores on shared signs", "factors", "a head of two modules")


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
                bank.add(name, save(root / name, model, seed, **fields), note={"labels": [name, "other"]})
            bank.remove("b")
            bank.save(root / "bank")
            done[form] = bank, root
        return done[form]

    return of


def asked(bank, names):
    with torch.no_grad():
        return bank(**tokens(len(names)), adapter_names=names).logits


@pytest.mark.parametrize("form", SHOWN)
def test_a_bank_is_read_as_it_was_written_and_takes_more(form, saved):
    bank, root = saved(form)
    model, _ = FORMS[form]
    before = (root / "bank" / file.FILE).read_bytes()
    again = AdapterBank.load(tiny(model), root / "bank")
    names = ["c", "a", "__base__", "c"]
    assert again.names == ["a", "c"]
    assert again.notes == {name: {"labels": [name, "other"]} for name in "ac"}
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("b", root / "b")
    torch.testing.assert_close(asked(again, ["b", "b", "c", "c"])[1], says(model, root / "b", dtype=torch.float32)[1])
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("a", root / "b", replace=True)
    assert (root / "bank" / file.FILE).read_bytes() == before  # memory-mapped, but a copy of its own
    with pytest.raises(InputError, match="exists; choose another folder"):
        bank.save(root / "bank")


def test_shared_frames_are_in_the_file_once_and_stay_shared(saved):
    bank, root = saved("diagonal cores on shared signs")
    sizes = sorted(value.numel() for value in load_file(root / "bank" / file.FILE).values())
    assert sizes == sorted([4 * 24] * 4 + [3 * 4] * 4 + [3 * 3, 3 * 3 * 24])
    again = AdapterBank.load(tiny("bert"), root / "bank")
    assert len({id(layer.frames) for layer in again._layers.values()}) == 2
    assert again.nbytes < bank.nbytes  # which has room for more


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


QUERY = "layers/bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(version=1), "needed: a header of version 2"),
        (lambda header, tensors: header.update(notes=["a"]), "base, notes and frames must hold keys and values"),
        (lambda header, tensors: header.update(frames={"bert.encoder.layer.0.attention.self.query": "x"}), "x"),
        (lambda header, tensors: header.update(more=3), "more"),
        (lambda header, tensors: tensors.update({f"{QUERY}/a": torch.ones(6, 4, 24)}), "needed: 3 x ..."),
        (lambda header, tensors: tensors.update({f"{QUERY}/a": tensors[f"{QUERY}/a"] / 0}), "values that are not"),
        (lambda header, tensors: tensors.update({f"{QUERY}/a": torch.ones(3, 4, 23)}), "do not fit a layer of 24 x 24"),
        (lambda header, tensors: tensors.update({"layers/x/a": torch.ones(3, 4, 24)}), "adapts a layer 'x'"),
        (lambda header, tensors: tensors.pop("heads/classifier/bias"), "bias of a head is missing"),
    ],
)
def test_a_file_that_is_no_bank_is_refused_in_one_line(change, message, saved, tmp_path):
    _, root = saved("factors")
    folder = damaged(root, tmp_path / "broken", change)
    with pytest.raises(InputError) as raised:
        AdapterBank.load(tiny("bert"), folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_cut_off_missing_or_another_is_refused(saved, tmp_path):
    _, root = saved("factors")
    with pytest.raises(InputError, match=r"not a bank of adapters, bank\.safetensors is missing"):
        AdapterBank.load(tiny("bert"), tmp_path)
    path = tmp_path / file.FILE
    path.write_bytes((root / "bank" / file.FILE).read_bytes()[:-9])
    with pytest.raises(InputError, match="not a bank of adapters, or cut off: "):
        AdapterBank.load(tiny("bert"), tmp_path)
    path.write_bytes((root / "a/adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match="needed: a header of version 2"):
        AdapterBank.load(tiny("bert"), tmp_path)


# The command


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder `users` with two adapters and their base model beside it, which nobody changes."""
    root = tmp_path_factory.mktemp("command")
    tiny("bert").save_pretrained(str(root / "base"))
    for seed, name in enumerate(("anna", "ben")):
        save(root / "users" / name, seed=seed, base="./base", **FORMS["diagonal cores on shared signs"][1])
    (root / "users/ben/task.json").write_text('{"labels": ["no", "yes"]}')
    return root


@pytest.fixture
def here(originals, tmp_path, monkeypatch):
    shutil.copytree(originals, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    "words", [("users", "-o", "bank"), ("users/anna", "users/ben", "-o", "bank", "--collapse", "--base", "base")]
)
def test_adapters_become_one_file(words, here, capsys):
    assert main(("bank", "--from", *words)) == 0
    size = (here / "bank" / file.FILE).stat().st_size
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"bank: 2 adapters, {size:,} bytes"
    bank = AdapterBank.load(tiny("bert"), here / "bank")
    assert second == f"{bank.nbytes:,} bytes of memory in addition to the base model"
    assert bank.notes == {"anna": None, "ben": {"labels": ["no", "yes"]}}
    assert {layer.frames is None for layer in bank._layers.values()} == {"--collapse" in words}
    found = asked(bank, ["ben", "anna"])
    for row, name in enumerate(("ben", "anna")):
        torch.testing.assert_close(found[row], says("bert", here / "users" / name, 2, torch.float32)[row])


def test_a_mistake_is_one_line(here, capsys):
    shutil.copytree("users/anna", "others/anna")
    shutil.copytree("users/anna", "broken/one")
    (here / "broken/one/task.json").write_text("{")
    for words, message in (
        (("users", "others", "-o", "bank"), "others/anna: another adapter is named 'anna', users/anna; rename one"),
        (("base", "-o", "bank"), "base: no adapter or folder of adapters"),
        (("users", "-o", "users", "--force"), "would replace users"),
        (("broken", "-o", "bank"), "task.json: not valid JSON"),
    ):
        assert main(("bank", "--from", *words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (here / "bank").exists()
