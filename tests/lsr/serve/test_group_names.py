"""The entries of groups of tenants in a bank: stored with its tenants, but not listed as one."""

import asyncio
import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.serve.file import FILE, HEADER
from lsr.serve.group_names import name_group
from lsr.serve.joining import join_banks
from lsr.serve.passes import BatchRunner
from lsr.serve.tenant_runner import TenantRunner
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


def test_an_entry_is_not_removed(folder):
    refused(load(folder).remove, GROUP, says=f"adapter_names: no adapter is named '{GROUP}', of 3 in the bank")


def chances_alone(folder, name, texts):
    """The probabilities of each text by the adapter alone in plain PEFT, by label."""
    labels = LABELS[name]
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=len(labels))
    model = PeftModel.from_pretrained(base, folder / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    chances = []
    for text in texts:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        chances.append(dict(zip(labels, logits.softmax(dim=0).tolist(), strict=True)))
    return chances


def test_a_server_answers_for_unknown_tenants_by_the_entry_of_the_labels_that_a_request_names(folder):
    texts = ["the cat", "a longer text about a cat", "no"]
    passes = TenantRunner(load(folder), AutoTokenizer.from_pretrained(folder / "base"), 28, 1)
    of_group = chances_alone(folder, "ben", texts)
    of_cleo = chances_alone(folder, "cleo", texts)

    async def call(client):
        async def ask(name, *labels):
            sent = {"adapter": name, "texts": texts}
            if labels:
                sent["labels"] = labels[0]
            return await client.post("/v1/predict", content=json.dumps(sent))

        requests = [
            ask("newcomer", ["good", "bad"]),
            ask("another", ["bad", "good"]),
            ask("cleo"),
            ask("cleo", ["z", "x", "y"]),
        ]
        responses = await asyncio.gather(*requests)
        for response, name, chances in zip(
            responses,
            ("newcomer", "another", "cleo", "cleo"),
            (of_group, of_group, of_cleo, of_cleo),
            strict=True,
        ):
            assert response.status_code == 200, response.text
            content = response.json()
            assert content["adapter"] == name
            for answer, expected in zip(content["answers"], chances, strict=True):
                assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
                assert answer["label"] == max(expected, key=expected.get)
        refusals = [
            (ask("newcomer"), 404, "no adapter is named 'newcomer'"),
            (ask("newcomer", ["x", "y"]), 404, "no adapter is named 'newcomer', and no group has these labels"),
            (ask("newcomer", None), 404, "no adapter is named 'newcomer', and no group has these labels"),
            (ask("\ud800", ["good", "bad"]), 404, "no adapter is named '\\ud800'"),
            (ask(GROUP), 404, f"no adapter is named '{GROUP}'"),
            (ask("cleo", ["x", "y"]), 422, "labels: the adapter of this name has others"),
            (ask("newcomer", "bad"), 422, "labels: must be a list of names"),
            (ask("newcomer", []), 422, "needed: {"),
        ]
        for request, status, says in refusals:
            response = await request
            assert response.status_code == status
            assert says in response.json()["error"]

    ask_passes(passes, call, answers_by_group=True)


def test_without_the_option_a_request_with_labels_is_refused(folder):
    passes = TenantRunner(load(folder), AutoTokenizer.from_pretrained(folder / "base"), 28, 1)
    content = {"adapter": "cleo", "texts": ["the cat"], "labels": LABELS["cleo"]}
    response = ask_passes(passes, lambda client: client.post("/v1/predict", json=content))
    assert response.status_code == 422


def test_the_option_is_refused_where_no_group_has_rows(folder, tmp_path):
    words = ["bank", "--from", str(folder / "anna"), "-o", str(tmp_path / "bank"), "--base", str(folder / "base")]
    assert main(words) == 0
    serve = ["serve", str(tmp_path / "bank"), "--base", str(folder / "base"), "--answer-by-group", "--port", "0"]
    refused(main, serve, says="--answer-by-group: it has no rows of groups; needed: a bank of a training run with")


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


def test_a_server_neither_lists_nor_changes_an_entry_nor_answers_by_its_name(folder, monkeypatch):
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
