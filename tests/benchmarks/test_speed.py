"""Speed: the methods are what they are called, times are paired, and the command writes what it has measured."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.speed import __main__ as command
from benchmarks.speed import figures, generate, graphs, loading, lora, many

TINY = BertConfig(vocab_size=30522, hidden_size=96, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


@pytest.fixture
def tiny(monkeypatch):
    """Few tokens through a tiny model."""
    for name, value in {"SHAPE": TINY, "ROWS": 3, "LENGTHS": (4,), "COUNTS": (1, 5), "ROUNDS": 1}.items():
        monkeypatch.setattr(many, name, value)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_lora_has_the_same_losses_by_peft_and_by_lsr(dtype, tolerance, monkeypatch):
    config = BertConfig(vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    kind = AutoModelForSequenceClassification
    monkeypatch.setattr(lora.base_models, "load_base_model", lambda row, dataset: kind.from_config(config))
    batches = [{"input_ids": torch.arange(12).view(2, 6) + at, "labels": torch.tensor([0, 1])} for at in range(5)]
    monkeypatch.setattr(lora, "first_batches", lambda *arguments: batches)
    times, losses = lora.train(lora.Case("minilm", lora.ALL_LINEAR, dtype, 8), rounds=4)
    assert {name: len(seconds) for name, seconds in times.items()} == {lora.PEFT: 4, lora.LSR: 4}
    assert losses[lora.LSR] == pytest.approx(losses[lora.PEFT], abs=tolerance)
    assert len(set(losses[lora.PEFT])) == 5


def test_many_adapters_are_served_by_every_way(tiny):
    rows = list(many.run())
    assert [row["method"] for row in rows] == 2 * [many.MERGED, many.ALONE, *many.FORMS, many.PEER]
    assert [row["adapters"] for row in rows if row["method"] == many.SMALLEST] == [1, 5]


def test_a_server_answers_as_many_texts_as_its_bank(tiny, monkeypatch):
    for name, value in {"TENANTS": 3, "CLIENTS": 2, "TEXTS": 8}.items():
        monkeypatch.setattr(many, name, value)
    (row,) = many.over_http()
    assert (row["tenants"], row["clients"], row["texts"]) == (3, 2, 8)
    assert row["share"] == pytest.approx(row["server_per_second"] / row["bank_per_second"])
    assert row["p99_seconds"] >= row["median_seconds"] > 0


@pytest.mark.nightly
def test_graphs_answer_batches_and_requests_by_every_runtime(tiny, monkeypatch):
    for name, value in {"BATCHES": (1, 2), "THREADS": (1,), "ROUNDS": 1, "SERVER_ROUNDS": 1}.items():
        monkeypatch.setattr(graphs, name, value)
    for name, value in {"TENANTS": 3, "CLIENTS": 2, "TEXTS": 8}.items():
        monkeypatch.setattr(many, name, value)
    rows = list(graphs.run())
    assert [row["texts"] for row in rows] == [1] * 4 + [2] * 4
    for row in rows:
        assert row["to_torch"] > 0
        assert row["method"] != graphs.TORCH or row["to_torch"] == 1
    assert [row["goal"] for row in rows] == [None, 0.6, 0.3, None] + [None] * 4
    served = {row["runtime"]: row for row in graphs.over_http()}
    assert list(served) == ["torch", "onnx", "onnx-int8"]
    assert served["onnx-int8"]["goal"] == 1.8
    assert served["onnx"]["megabytes"] < served["torch"]["megabytes"] / 2
    assert all(row["start_seconds"] > 0 for row in served.values())


def test_a_bank_of_so_many_adapters_is_loaded_and_its_file_hashed(tiny, monkeypatch):
    monkeypatch.setattr(loading, "ADAPTERS", 3)
    monkeypatch.setattr(loading, "ROUNDS", 1)
    small, large = loading.run()
    assert (small["adapters"], large["adapters"]) == (3, 3)
    for row in (small, large):
        assert min(row["load_seconds"], row["checksum_seconds"]) > 0
        rate = row["checksum_seconds"] / row["gigabytes"]
        assert row["checksum_seconds_per_gigabyte"] == pytest.approx(rate)
    assert large["gigabytes"] > small["gigabytes"] > 0


def test_a_language_model_learns_and_writes_with_every_form_and_without(monkeypatch):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 64}
    shape = generate.SHAPE | sizes | {"num_attention_heads": 2, "num_key_value_heads": 1}
    for name, value in {"SHAPE": shape, "EXAMPLES": 2, "LENGTH": 6, "NEW": 3, "ROUNDS": 2}.items():
        monkeypatch.setattr(generate, name, value)
    monkeypatch.setattr(figures, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(generate, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))  # not 7 s each
    rows = list(generate.run())
    methods = [generate.NONE, *generate.FORMS]
    assert [row["method"] for row in rows] == [*methods, *methods, generate.MERGED]
    for row in rows:
        assert min(row["tokens_per_second"], row["to LoRA r = 8"], row["to no adapter"], row["peak"]) > 0
        assert row["method"] not in (generate.LORA, generate.NONE) or row[f"to {row['method']}"] == 1
    before, after = (generate.call("write", "float32", method, shape)() for method in ("LSR [8]", generate.MERGED))
    assert torch.equal(before, after)


def test_the_command_writes_the_figures_of_one_part_and_leaves_those_of_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "speed.json")
    monkeypatch.setitem(command.PARTS, "many", lambda: [{"method": many.PEER, "seconds": 1 / 3}])
    monkeypatch.setitem(command.PARTS, "lora", lambda: [{"model": "minilm", "rank": None}])
    for part in ("many", "lora", "many"):
        command.main([part, "--threads", "1"])
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert measured["many"]["figures"] == [{"method": many.PEER, "seconds": 0.333333}]
    assert measured["lora"]["figures"] == [{"model": "minilm", "rank": None}]
    assert "many: method | seconds" in capsys.readouterr().out
