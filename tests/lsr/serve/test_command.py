"""`python -m lsr bank`: what it writes and prints, and one line for each mistake."""

import json
import shutil

import pytest
import torch

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.serve import stored
from tests.capabilities.models import tiny, tokens
from tests.lsr.serve.families import FORMS, save, says


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


def mistake(capsys, *words):
    try:
        code = main(("bank", *words))
    except SystemExit as left:
        code = left.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_of_adapters_becomes_one_file(here, capsys):
    assert main(("bank", "--from", "users", "-o", "bank")) == 0
    size = (here / "bank" / stored.FILE).stat().st_size
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"bank: 2 adapters, {size:,} bytes"
    bank = AdapterBank.load(tiny("bert"), here / "bank")
    assert second == f"{bank.nbytes:,} bytes of memory in addition to the base model"
    assert bank.notes == {"anna": None, "ben": {"labels": ["no", "yes"]}}
    with torch.no_grad():
        found = bank(**tokens(2), adapter_names=["ben", "anna"]).logits
    for row, name in enumerate(("ben", "anna")):
        torch.testing.assert_close(found[row], says("bert", here / "users" / name, 2, torch.float32)[row])


@pytest.mark.parametrize("options", [(), ("--collapse",)])
def test_adapters_are_named_one_by_one_and_kept_as_matrices_if_asked(options, here):
    assert main(("bank", "--from", "users/ben", "users/anna", "-o", "bank", *options)) == 0
    bank = AdapterBank.load(tiny("bert"), here / "bank")
    assert bank.names == ["ben", "anna"]
    assert bank.collapse == bool(options)


def test_two_adapters_of_one_name_are_refused(here, capsys):
    shutil.copytree("users/anna", "others/anna")
    line = mistake(capsys, "--from", "users", "others", "-o", "bank")
    assert "others/anna: another adapter is named 'anna', users/anna; rename one of them" in line


def test_a_folder_without_adapters_is_refused(here, capsys):
    assert "base: no adapter or folder of adapters" in mistake(capsys, "--from", "base", "-o", "bank")
    assert not (here / "bank").exists()


def test_a_folder_that_is_read_is_not_replaced(here, capsys):
    assert "would replace users" in mistake(capsys, "--from", "users", "-o", "users", "--force")


def test_a_note_that_is_no_json_is_refused(here, capsys):
    (here / "users/ben/task.json").write_text("{")
    assert "task.json: not valid JSON" in mistake(capsys, "--from", "users", "-o", "bank")


def test_an_adapter_of_another_base_is_refused(here, capsys):
    path = here / "users/ben/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "other"}))
    line = mistake(capsys, "--from", "users", "-o", "bank")
    assert "base_model_name_or_path is 'other', but './base' for the adapters in the bank" in line
