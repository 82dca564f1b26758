"""Speed: the methods are what they are called, times are paired, and the command writes what it has measured."""

import json
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks import figures
from benchmarks.speed import __main__ as command
from benchmarks.speed import lora, many, timing

TINY = BertConfig(vocab_size=30000, hidden_size=96, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


@pytest.fixture
def tiny(monkeypatch):
    """Few tokens through a tiny model."""
    for name, value in {"SHAPE": TINY, "ROWS": 3, "LENGTHS": (4,)}.items():
        monkeypatch.setattr(many, name, value)


def test_calls_take_turns_and_the_first_round_does_not_count():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    times = timing.take_turns(calls, 3)
    assert called == list("abababab")
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_those_within_rounds():
    assert timing.ratio([3.0, 12.0, 3.0], [1.0, 10.0, 1.0]) == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_lora_has_the_same_losses_by_peft_and_by_lsr(dtype, tolerance, monkeypatch):
    config = BertConfig(vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    kind = AutoModelForSequenceClassification
    monkeypatch.setattr(lora.base_models, "load_base_model", lambda row, dataset: kind.from_config(config))
    batches = [{"input_ids": torch.arange(12).view(2, 6) + at, "labels": torch.tensor([0, 1])} for at in range(5)]
    monkeypatch.setattr(lora, "_batches", lambda *arguments: batches)
    times, losses = lora.train(lora.Case("minilm", lora.ALL_LINEAR, dtype, 8), rounds=4)
    assert {name: len(seconds) for name, seconds in times.items()} == {lora.PEFT: 4, lora.LSR: 4}
    assert losses[lora.LSR] == pytest.approx(losses[lora.PEFT], abs=tolerance)
    assert len(set(losses[lora.PEFT])) == 5


def test_many_adapters_are_served_by_every_way(tiny):
    rows = [*many.serve(1, rounds=1), *many.serve(5, rounds=1)]
    assert [row.method for row in rows] == 2 * [many.MERGED, many.ALONE, *many.FORMS, many.PEER]
    smallest = {row.adapters: row for row in rows if row.method == many.SMALLEST}
    cores, head = 4 * (16 + 1) * 4, (2 * 97) * 4  # of two query and two value layers, with their scaling, and a head
    assert smallest[5].bytes_beyond_base - smallest[1].bytes_beyond_base >= 4 * (cores + head)


def test_the_command_writes_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "speed.json")
    monkeypatch.setattr(many, "run", lambda *arguments: [many.Row(32, many.PEER, 4, 0.5, None)])
    command.main(["many", "--threads", "1"])
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert [row["method"] for row in measured["many"]["figures"]] == [many.PEER]
    assert "many: tokens | method | adapters" in capsys.readouterr().out


def test_the_results_of_one_part_leave_those_of_the_other(tmp_path):
    for part, seconds in [("starts", 1.0), ("stream", 2.0), ("starts", 1 / 3)]:
        figures.publish(tmp_path / "results/figures.json", part, 1, [Row("principal", seconds)])
    found = json.loads((tmp_path / "results/figures.json").read_text())
    assert {part: found[part]["figures"][0]["seconds"] for part in found} == {"starts": 0.333333, "stream": 2.0}


class Row(NamedTuple):
    call: str
    seconds: float
