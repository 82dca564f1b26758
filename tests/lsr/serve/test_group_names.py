"""The entries of groups of tenants in a bank: stored with its tenants, but neither listed nor answered as one."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.serve.file import FILE, HEADER
from lsr.serve.group_names import name_group
from lsr.serve.joining import join_banks
from lsr.serve.passes import BatchRunner
from lsr_onnx.names import is_reserved
from pipeline.tasks.tenants import FORBIDDEN
from tests.kit import refused
from tests.lsr.serve.asking import ask_passes, files
from tests.lsr.serve.sealing import parts, seal
from tests.lsr.serve.tenants import save
from tests.workspace import save_tiny_roberta

LABELS = {"anna": ["bad", "good"], "ben": ["good", "bad"], "cleo": ["x", "y", "z"]}
GROUP = name_group(["good", "bad"])
ALLOWED = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, an adapter per tenant, and a bank of these with an entry for the group of two."""
    folder = tmp_path_factory.mktemp("groups")
    save_tiny_roberta(folder / "base")
    for seed, (name, labels) in enumerate(LABELS.items()):
        save(folder / name, folder / "base", seed, labels)
    bank = AdapterBank(AutoModelForSequenceClassification.from_pretrained(folder / "base"))
    for name in LABELS:
        bank.add(name, folder / name)
    bank.add_groups({GROUP: bank.contents("ben")})
    bank.save(folder / "bank")
    return folder


def load(folder):
    return AdapterBank.load(str(folder / "base"), folder / "bank")


def test_a_name_depends_on_the_set_of_labels_alone():
    assert name_group(["b", "a"]) == name_group(("a", "b"))
    names = {name_group(labels) for labels in (None, [], ["a"], ["a", "b"], ["A", "b"], ["a,b"])}
    assert len(names) == 6
    assert all(map(is_reserved, names))
    assert all(map(FORBIDDEN.fullmatch, names))  # no tenant of the pipeline has such a name


def test_an_entry_is_saved_joined_and_kept_while_tenants_leave(folder):
    bank = load(folder)
    assert (bank.names, list(bank.task_infos), list(bank.groups)) == ([*LABELS], [*LABELS], [GROUP])
    expected = bank.contents("ben").heads
    for other in (bank, join_banks([folder / "bank"], str(folder / "base"))):
        other.remove("ben")
        other.remove("anna")
        assert (other.names, list(other.groups)) == (["cleo"], [GROUP])
        assert other.contents(GROUP).task["labels"] == ["good", "bad"]
        for name, value in other.contents(GROUP).heads.items():
            assert torch.equal(value, expected[name])


def test_no_text_is_answered_by_an_entry(folder):
    bank = load(folder)
    inputs = AutoTokenizer.from_pretrained(folder / "base")("the cat", return_tensors="pt")
    says = f"adapter_names: no adapter is named '{GROUP}', of 3 in the bank"
    refused(lambda: bank(**inputs, adapter_names=[GROUP]), says=says)
    refused(bank.remove, GROUP, says=says)


def test_no_user_gives_or_takes_such_a_name(folder, tmp_path):
    bank = load(folder)
    says = "an adapter's name must not begin with __group_, which is for groups of tenants, got '__group_mine'"
    refused(bank.add, "__group_mine", folder / "anna", says=says)
    refused(bank.add, GROUP, folder / "ben", replace=True, says="must not begin with __group_")
    (tmp_path / "__group_mine").symlink_to(folder / "anna")
    words = ["bank", "--from", str(tmp_path / "__group_mine"), "-o", str(tmp_path / "out")]
    refused(main, [*words, "--base", str(folder / "base")], says="must not begin with __group_")
    wrong = {name_group(["a", "b"]): bank.contents("ben")}
    refused(bank.add_groups, wrong, says=f"with these labels must be named {GROUP}, got")


def test_a_file_has_no_entry_of_another_name(folder, tmp_path):
    shutil.copytree(folder / "bank", tmp_path / "bank")
    path = tmp_path / "bank" / FILE
    header, _, data = parts(path)
    text = header["__metadata__"][HEADER]
    header["__metadata__"][HEADER] = text.replace(GROUP, "__group_mine")
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    seal(path)
    refused(AdapterBank.load, str(folder / "base"), path.parent, says=f"must be named {GROUP}, got '__group_mine'")


def test_a_server_neither_lists_nor_answers_nor_changes_an_entry(folder, monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", "secret")
    bank = load(folder)
    passes = BatchRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 28, 1)

    async def call(client):
        listed = (await client.get("/v1/models", headers=ALLOWED)).json()["data"]
        assert [model["id"] for model in listed] == [*LABELS]
        assert (await client.get("/health")).json()["adapters"] == 3
        asked = await client.post("/v1/predict", json={"adapter": GROUP, "texts": ["the cat"]})
        assert asked.status_code == 404
        removed = await client.delete(f"/v1/adapters/{GROUP}", headers=ALLOWED)
        assert removed.status_code == 404
        put = await client.put(f"/v1/adapters/{GROUP}", headers=ALLOWED, files=files(folder / "ben"))
        assert put.status_code == 422
        assert "must not begin with __group_" in put.json()["error"]

    ask_passes(passes, call)
    assert list(bank.groups) == [GROUP]
