"""The file of a bank: read as it was written, and one line for what is none."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lsr import AdapterBank
from lsr.loading.files import InputError
from lsr.serve import stored
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
    again = AdapterBank.load(tiny(model), root / "bank")
    names = ["c", "a", "__base__", "c"]
    assert again.names == ["a", "c"]
    assert again.notes == {name: {"labels": [name, "other"]} for name in "ac"}
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("b", root / "b")
    torch.testing.assert_close(asked(again, ["b", "b", "c", "c"])[1], says(model, root / "b", dtype=torch.float32)[1])
    assert torch.equal(asked(again, names), asked(bank, names))


def test_what_is_changed_in_memory_is_not_changed_in_the_file(saved):
    _, root = saved("factors")
    before = (root / "bank" / stored.FILE).read_bytes()
    bank = AdapterBank.load(tiny("bert"), root / "bank")
    bank.add("a", root / "b", replace=True)
    assert (root / "bank" / stored.FILE).read_bytes() == before


def test_shared_frames_are_in_the_file_once_and_stay_shared(saved):
    bank, root = saved("diagonal cores on shared signs")
    sizes = sorted(value.numel() for value in load_file(root / "bank" / stored.FILE).values())
    assert sizes == sorted([4 * 24] * 4 + [3 * 4] * 4 + [3 * 3, 3 * 3 * 24])
    again = AdapterBank.load(tiny("bert"), root / "bank")
    assert len({id(layer.frames) for layer in again._layers.values()}) == 2
    assert again.nbytes < bank.nbytes  # which has room for more


def test_a_bank_is_not_replaced_unless_asked(saved):
    bank, root = saved("factors")
    with pytest.raises(InputError, match="exists; choose another folder"):
        bank.save(root / "bank")
    bank.save(root / "bank", force=True)


def test_the_index_is_read_without_tensors(saved):
    _, root = saved("factors")
    index = stored.read_index(root / "bank")
    assert (list(index.notes), index.base["base_model_name_or_path"]) == (["a", "c"], "tiny")


# Mistakes


def damaged(root, folder, change):
    """Write a bank with another header or other tensors."""
    with safe_open(root / "bank" / stored.FILE, framework="pt") as file:
        header = json.loads(file.metadata()[stored.HEADER])
    tensors = load_file(root / "bank" / stored.FILE)
    change(header, tensors)
    folder.mkdir()
    save_file(tensors, folder / stored.FILE, metadata={stored.HEADER: json.dumps(header)})
    return folder


def grow_first(header, tensors):
    tensors["0"] = torch.cat([tensors["0"], tensors["0"]])


def break_first(header, tensors):
    tensors["0"][0] = float("nan")


def rename_layer(header, tensors):
    header["layers"] = {f"x.{name}": keys for name, keys in header["layers"].items()}


def swap_sides(header, tensors):
    for keys in header["layers"].values():
        keys["c"] = keys.pop("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(version=2), "not a bank of version 1"),
        (lambda header, tensors: header.update(notes={}), "its header names no adapters"),
        (lambda header, tensors: header.update(notes=[1]), "its header names no adapters"),
        (lambda header, tensors: header.update(notes={"a": None, "__base__": None}), "names an adapter '__base__'"),
        (lambda header, tensors: header.update(layers={"a": {"a": "900"}}), "does not fit its tensors: '900'"),
        (lambda header, tensors: header.update(layers=3), "its header does not fit its tensors"),
        (lambda header, tensors: header["notes"].update(d=None), "needed: 4 x ..."),
        (
            lambda header, tensors: header["heads"].update(pooler=header["heads"]["classifier"]),
            "pooler.bias is 3, but not there in the base model",
        ),
        (grow_first, "needed: 3 x ..."),
        (break_first, "tensor 0 has a dtype or values that no bank can have"),
        (rename_layer, "which the base model does not have"),
        (swap_sides, "do not fit a layer of 24 x 24"),
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
    path = tmp_path / stored.FILE
    path.write_bytes((root / "bank" / stored.FILE).read_bytes()[:-9])
    with pytest.raises(InputError, match="corrupt or cut off"):
        AdapterBank.load(tiny("bert"), tmp_path)
    path.write_bytes((root / "a/adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match="its header has no lsr_bank"):
        AdapterBank.load(tiny("bert"), tmp_path)


def test_a_bank_of_another_base_model_is_refused(saved):
    _, root = saved("factors")
    base = tiny("bert")
    base.classifier = nn.Linear(24, 5)
    with pytest.raises(InputError, match=r"classifier\.bias is 3, but 5 in the base model"):
        AdapterBank.load(base, root / "bank")
