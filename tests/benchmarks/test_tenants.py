"""The benchmark of tenants, on a tiny model: a row for each form, records of the arena, nothing trained twice."""

import json
import random

import pytest
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.tenants import __main__ as command
from benchmarks.tenants import ways
from pipeline.arena import record
from tests.workspace import save_tiny_roberta

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
TENANTS = ("baby", "books")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs the command; returns the figures and what it prints."""
    save_tiny_roberta(tmp_path / "base")
    BertForSequenceClassification(BertConfig(vocab_size=400, **TINY)).save_pretrained(tmp_path / "base")
    draw = random.Random(0)
    for name in TENANTS:
        for split in ("train", "test"):
            rows = [f"{at % 2}\t{' '.join(draw.choices(['good', 'bad', 'cat', 'barn'], k=6))}" for at in range(30)]
            (tmp_path / f"{name}.{split}.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    settings = {"BASE": "./base", "TEXTS": 20, "MAX_LENGTH": 8, "SEEDS": (0, 1), "FACTORS": (1.0, 3.0)}
    for name, value in {**settings, "RESAMPLES": 50}.items():
        monkeypatch.setattr(command, name, value)

    def go():
        command.main([".", "--threads", "1"])
        return json.loads(command.PATH.read_text()), capsys.readouterr().out

    return go


def test_every_form_has_a_row_and_records_and_nothing_is_trained_twice(run):
    figures, printed = run()
    rows = {row["form"]: row for row in figures["tenants"]["figures"]}
    assert [*rows] == [form.name for form in ways.FORMS]
    assert rows["own LoRA r = 8"]["bytes"] < rows["own LoRA r = 8, as trained"]["bytes"]
    assert rows["one LoRA r = 8 for all, own heads"]["shared_bytes"] > 0
    assert rows["own cores, 192 numbers, in frames of all"]["passes"] == 4
    records = record.read(command.RECORDS.parent)
    assert {(one.task, one.method, one.seed) for one in records.values()} == {
        (name, form.name, seed) for name in TENANTS for form in ways.FORMS for seed in (0, 1)
    }
    trained = {one.method: one.trained for one in records.values()}
    assert trained["own cores, 192 numbers, in frames of all"] == 4 * 4**2  # of two layers' queries and values
    assert (trained["own head"], trained["one LoRA r = 8 for all, own heads"]) == (0, 0)
    side, alone = figures["side by side"]["figures"]
    assert (side["order"], alone["order"]) == ("side by side", "one by one")
    assert "training" in printed
    again, printed = run()
    assert "training" not in printed
    assert again["tenants"]["figures"] == figures["tenants"]["figures"]


def test_a_folder_without_tenants_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path)])
    assert capsys.readouterr().err == f"python -m benchmarks.tenants: {tmp_path}: no NAME.train.tsv\n"
