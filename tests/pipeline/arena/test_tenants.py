"""A task with tenants in the arena: reads by tenant, what its bank takes, and features without adapters."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.arena import task_tokens
from pipeline.arena.compete import check
from pipeline.arena.features import Pooled
from pipeline.arena.measure import measure
from pipeline.compare import labels
from tests.kit import refused, write
from tests.pipeline.arena import small

METHODS = {
    "head": {"adapter": "head"},
    "LoRA r=1": {"adapter": "lora", "params": {"lora.r": 1, "lora.lora_alpha": 2}},
    "mean": {"adapter": "head", "features": "mean"},
    "first": {"adapter": "head", "features": "first"},
    "nearest": {"adapter": "head", "features": "nearest"},
    "words": {"adapter": "head", "features": "words"},
}
TINY = 2 * 2 * 48  # layers, queries and values, and the widths around them


def rows(name, words, count):
    return [{"who": name, "text": f"{words[n % len(words)]} of {name} {n}", "kind": words[n % 3]} for n in range(count)]


@pytest.fixture
def tenants(arena):
    """The preset with a task of two tenants, of three labels each, one with few texts."""
    shops = [*rows("acme", ["red", "green", "blue"], 90), *rows("bolt", ["cat", "dog", "owl"], 30)]
    write("shops.jsonl", shops)
    row = {
        "source": {"kind": "files", "files": {"train": "shops.jsonl"}},
        "text": ["text"],
        "tenant": "who",
        "label": {"column": "kind"},
        "metrics": ["accuracy"],
        "cut": {"validation": 0.2, "test": 0.2},
    }
    write("data/datasets.yaml", {"shops": row})
    reads = {"train": 20, "validation": 6, "test": 9}
    small.use(tasks={"few": {"row": "shops", "reads": reads}}, methods=METHODS)


def training(method, task="few", **setting):
    return small.training(f"{task}: {method}", **setting)


def test_each_tenant_has_as_many_rows_and_its_own_name_beside_the_labels(tenants, tmp_path):
    chosen = training("head")
    splits = task_tokens.splits(chosen)
    counts = {split: np.bincount(rows["tenant"][:]).tolist() for split, rows in splits.items()}
    assert counts == {"train": [20, 18], "validation": [6, 6], "test": [9, 6]}
    assert chosen.view.dataset._tenants["bolt"] == (("cat", "dog", "owl"), 18)
    task_tokens.write_labels(chosen, tmp_path / "few.csv")
    assert pd.read_csv(tmp_path / "few.csv")["tenant"].value_counts().to_dict() == {"acme": 9, "bolt": 6}


def test_a_training_is_scored_as_the_mean_of_tenants(tenants, tmp_path):
    record = measure(training("LoRA r=1"))
    assert (record.status, record.reason) == ("finished", "")
    assert len(record.validation) == 2
    task_tokens.write_labels(training("LoRA r=1"), tmp_path / "few.csv")
    parts = labels._parts("few", pd.read_csv(tmp_path / "few.csv"))
    assert parts.keys() == {"few: acme", "few: bolt"}
    assert record.score() == pytest.approx(labels.score("accuracy", np.array(record.predicted), parts), abs=1e-6)
    assert record.trained == record.stored == TINY
    assert record.file_bytes > 2 * record.tenant_bytes > 2 * 4 * 3 * 25


@pytest.mark.parametrize("task", ["few", "glue"])
def test_features_of_the_frozen_encoder_are_scored_at_once_by_regressions(task, tenants):
    if task == "glue":
        small.use(methods=METHODS)
    mean, _, nearest, words = found = [measure(training(name, task)) for name in ("mean", "first", "nearest", "words")]
    for record in found:
        assert (record.status, record.reason, record.trained) == ("finished", "", 0)
        assert record.seconds["train"] > 0
    assert mean.stored == (2 * 3 * 25 if task == "few" else 25)
    assert mean.file_bytes == 4 * mean.stored
    assert min(mean.score(), words.score()) > 0.45  # the words are in the texts
    assert nearest.stored == (2 * 3 * 24 if task == "few" else 48)
    assert 0 < words.file_bytes == 4 * words.stored
    assert measure(training("mean", task)).predicted == mean.predicted


def test_features_are_a_mean_over_tokens_without_padding_or_the_first_one_or_how_often_they_occur():
    states = torch.arange(12.0).reshape(2, 3, 2)
    kept = torch.tensor([[1, 1, 1], [1, 0, 0]])
    read = {"input_ids": torch.tensor([[1, 2, 1], [3, 0, 0]]), "attention_mask": kept, "tenant": torch.zeros(2)}

    def encoder(**_):
        return SimpleNamespace(last_hidden_state=states)

    encoder.config = SimpleNamespace(vocab_size=4)
    mean, nearest, first, words = (
        Pooled(encoder, name)(**read).logits.tolist() for name in ("mean", "nearest", "first", "words")
    )
    assert mean == nearest == [[2.0, 3.0], [6.0, 7.0]]
    assert first == [[0.0, 1.0], [6.0, 7.0]]
    assert words == [[0, 2, 1, 0], [0, 0, 0, 1]]


def test_features_are_of_classes_alone(arena):
    small.use(methods=METHODS)
    entry = small.entry("ratings: mean")
    refused(check, [entry], says="small.methods.mean: features: a logistic regression needs a task with classes")
    assert "ratings is not" in measure(entry.first()).reason
