"""Tasks of other kinds in the arena: tenants, beside features without adapters, and what a language model writes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from pipeline.arena import features as features_of_encoder
from pipeline.arena import preset, task_tokens
from pipeline.arena.execution import check
from pipeline.arena.features import Pooled
from pipeline.arena.measure import measure
from pipeline.compare import examples
from pipeline.compare.rows import Cell
from pipeline.tasks.facts import Tenant
from tests import kit, workspace, writers
from tests.kit import refused, write
from tests.pipeline.arena import small

KINDS = workspace.read_yaml(Path(__file__).with_name("kinds.yaml"))
METHODS = KINDS["tenants"]
WORDS = ["red", "green", "blue"]
TINY = 2 * 2 * 48  # layers, queries and values, and the widths around them


def rows(name, words, count):
    return [{"who": name, "text": f"{words[n % len(words)]} of {name} {n}", "kind": words[n % 3]} for n in range(count)]


SHOPS = [*rows("acme", ["red", "green", "blue"], 90), *rows("bolt", ["cat", "dog", "owl"], 30)]
ROW = {
    "source": {"kind": "files", "files": {"train": "shops.jsonl"}},
    "text": ["text"],
    "split": {"validation": 0.2, "test": 0.2},
}


@pytest.fixture
def tenants(arena):
    """The preset with a task of two tenants, of three labels each, one with few texts."""
    write("shops.jsonl", SHOPS)
    row = {**ROW, "tenant": "who", "label": {"column": "kind"}, "metrics": ["accuracy"]}
    write("data/datasets.yaml", {"shops": row})
    sample_sizes = {"train": 20, "validation": 6, "test": 9}
    small.use(tasks={"few": {"row": "shops", "sample_sizes": sample_sizes}}, methods=METHODS)


def training(method, task="few", **setting):
    return small.training(f"{task}: {method}", **setting)


def test_each_tenant_has_as_many_rows_and_its_own_name_beside_the_labels(tenants, tmp_path):
    chosen = training("head")
    splits = task_tokens.splits(chosen)
    counts = {split: np.bincount(rows["tenant"][:]).tolist() for split, rows in splits.items()}
    assert counts == {"train": [20, 18], "validation": [6, 6], "test": [9, 6]}
    assert task_tokens.task_of(chosen).facts.tenants["bolt"] == Tenant(labels=("cat", "dog", "owl"), train=18)
    task_tokens.write_labels(chosen, tmp_path / "few.csv")
    assert pd.read_csv(tmp_path / "few.csv")["tenant"].value_counts().to_dict() == {"acme": 9, "bolt": 6}


def test_a_cached_row_of_ones_own_knows_its_rarer_class(arena):
    write("shops.jsonl", [{"text": f"{n} owls", "kind": "ab"[n % 3 > 0]} for n in range(90)])
    row = {**ROW, "label": {"column": "kind", "names": ["a", "b"]}, "metrics": ["f1"]}
    write("data/datasets.yaml", {"shops": row})
    small.use(tasks={"shops": {}}, methods=METHODS)
    for chosen in (training("head", "shops"), training("head", "shops")):
        task_tokens.splits(chosen)
        assert task_tokens.task_of(chosen).head.names == ("b", "a")


def labels_of(task, found, path):
    """Return the labels of a task by part, as a comparison reads them next to the record of a training run."""
    task_tokens.write_labels(small.training(f"{task}: {found.method}"), path)
    cell = Cell(trials=(), trainings=(found,), chosen=found, labels=path)
    parts, notes = examples.read({task: {found.method: cell}})
    assert notes == []
    return parts[task]


def test_the_groups_of_a_task_are_written_with_its_labels(monkeypatch, tmp_path):
    test = Dataset.from_dict({"label": [1, 0, 1], "group": [4, 4, 2]})
    scoring = SimpleNamespace(extract_targets=lambda labels, groups: labels)
    monkeypatch.setattr(task_tokens, "splits", lambda training: {"test": test})
    monkeypatch.setattr(task_tokens, "task_of", lambda training: SimpleNamespace(scoring=scoring))
    task_tokens.write_labels(None, tmp_path / "multirc.csv")
    (part,) = examples.parts_of("multirc", pd.read_csv(tmp_path / "multirc.csv")).values()
    assert (part.tolist(), examples.get_groups(part).tolist()) == ([1, 0, 1], [4, 4, 2])


def test_a_training_is_scored_as_the_mean_of_tenants(tenants, tmp_path):
    found = measure(training("LoRA r=1"))
    assert (found.status, found.reason) == ("finished", "")
    assert len(found.validation) == 2
    parts = labels_of("few", found, tmp_path / "few.csv")
    assert parts.keys() == {"few: acme", "few: bolt"}
    assert found.score() == pytest.approx(examples.score("accuracy", found, parts), abs=1e-6)
    assert found.trained == found.stored == TINY
    assert found.file_bytes > 2 * found.tenant_bytes > 2 * 4 * 3 * 25


def test_a_method_chooses_what_tenants_with_the_same_labels_share(arena, tmp_path):
    words = ["red", "green", "blue"]
    write("shops.jsonl", [*rows("acme", words, 40), *rows("bolt", words, 40)])
    row = {**ROW, "tenant": "who", "label": {"column": "kind"}, "metrics": ["accuracy"]}
    write("data/datasets.yaml", {"shops": row})
    lora = small.SMALL["methods"]["LoRA r=1"]
    methods = {head: {**lora, "params": lora["params"] | {"tenants.head": head}} for head in ("auto", "own", "shared")}
    small.use(tasks={"few": {"row": "shops", "sample_sizes": {"test": 9}}}, methods=METHODS | methods)
    chosen = {head: training(head) for head in methods}
    assert len({run.key for run in chosen.values()}) == 3
    for head in ("auto", "shared"):
        found = measure(chosen[head])
        assert (found.status, found.reason) == ("finished", "")
        parts = labels_of("few", found, tmp_path / f"{head}.csv")
        assert found.score() == pytest.approx(examples.score("accuracy", found, parts), abs=1e-6)
        assert found.trained == found.stored == TINY


def test_the_labels_of_a_text_that_has_several_are_drawn_together(arena):
    made = [{"text": f"{one['text']} of late", "tags": [one["kind"]] * (n % 4 > 0)} for n, one in enumerate(SHOPS)]
    write("tagged.jsonl", made)
    names = ["blue", "cat", "dog", "green", "owl", "red"]
    row = {**ROW, "label": {"multi_label": "tags", "names": names}, "metrics": ["macro_f1", "micro_f1"]}
    write("data/datasets.yaml", {"tagged": {**row, "source": {"kind": "files", "files": {"train": "tagged.jsonl"}}}})
    small.use(tasks={"tagged": {}})
    found = measure(small.training("tagged: head"))
    parts = labels_of("tagged", found, Path("tagged.csv"))
    (actual,) = parts.values()
    assert actual.shape == (20, 6)
    assert found.score() > 0
    assert found.score() == pytest.approx(examples.score("macro_f1", found, parts), abs=1e-6)
    (drawn,) = examples.resample(
        "tagged", "macro_f1", actual.to_numpy(), [examples.get_predictions(found, actual)], 400
    )
    assert drawn.std() > 0


@pytest.mark.parametrize("task", ["few", "glue"])
def test_features_of_the_frozen_encoder_are_scored_at_once_by_regressions(task, tenants):
    if task == "glue":
        small.use(methods=METHODS)
    mean, _, nearest, words = found = [measure(training(name, task)) for name in ("mean", "first", "nearest", "words")]
    for one in found:
        assert (one.status, one.reason, one.trained) == ("finished", "", 0)
        assert one.seconds["train"] > 0
    assert mean.stored == (2 * 3 * 25 if task == "few" else 25)
    assert mean.file_bytes == 4 * mean.stored
    assert min(mean.score(), words.score()) > 0.45  # the words are in the texts
    assert nearest.stored == (2 * (3 + 1) * 24 if task == "few" else (2 + 1) * 24)  # means, and deviations within
    assert 0 < words.file_bytes == 4 * words.stored
    assert measure(training("mean", task)).predicted == mean.predicted


def test_the_nearest_mean_is_that_of_features_divided_by_their_deviations_within_classes():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    means = 3 * random.normal(size=(3, 8))
    features = (random.normal(size=(200, 8)) + means[labels]) * np.logspace(0, 1.5, 8)
    fitted = features_of_encoder.fit_classifier("nearest", (features, labels), (features[:0], labels[:0]))
    means = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    within = ((features - means[labels]) ** 2).sum(axis=0)
    deviations = np.sqrt(within / (200 - 3))
    asked = random.normal(size=(500, 8)) * 3 * np.logspace(0, 1.5, 8)
    distances = (((asked[:, None] - means) / deviations) ** 2).sum(axis=2)
    found = features_of_encoder.compute_outputs(fitted, asked, 3).argmax(dim=1)
    assert found.tolist() == distances.argmin(axis=1).tolist()
    assert features_of_encoder.count_parameters(fitted) == 3 * 8 + 8


def test_of_a_single_text_of_each_class_the_nearest_one_answers(arena):
    for split, ending in (("train", ""), ("validation", "."), ("test", " .")):
        texts = [{"text": f"{word} hats and {word} shoes{ending}", "kind": word} for word in WORDS]
        write(f"{split}.jsonl", texts)
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    label = {"column": "kind", "names": WORDS}
    row = {"source": {"kind": "files", "files": files}, "text": ["text"], "label": label, "metrics": ["accuracy"]}
    write("data/datasets.yaml", {"colors": row})
    small.use(tasks={"colors": {}}, methods=METHODS)
    found = measure(training("nearest", "colors"))
    assert (found.status, found.reason) == ("finished", "")
    assert found.score() == 1.0
    assert found.stored == 3 * 24


def test_features_are_a_mean_over_tokens_without_padding_or_the_first_one_or_how_often_they_occur():
    states = torch.arange(12.0).reshape(2, 3, 2)
    kept = torch.tensor([[1, 1, 1], [1, 0, 0]])
    read = {"input_ids": torch.tensor([[1, 2, 1], [3, 0, 0]]), "attention_mask": kept, "tenant": torch.zeros(2)}

    def encoder(**_):
        return SimpleNamespace(last_hidden_state=states)

    encoder.config = SimpleNamespace(vocab_size=4, is_encoder_decoder=False)
    mean, nearest, first, words = (
        Pooled(encoder, name)(**read).logits.tolist() for name in ("mean", "nearest", "first", "words")
    )
    assert mean == nearest == [[2.0, 3.0], [6.0, 7.0]]
    assert first == [[0.0, 1.0], [6.0, 7.0]]
    assert words == [[0, 2, 1, 0], [0, 0, 0, 1]]
    elsewhere = {name: value.to("meta") for name, value in read.items()}
    assert Pooled(encoder, "words")(**elsewhere).logits.is_meta
    on_the_left = read | {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}  # as XLNet has it
    assert Pooled(encoder, "first")(**on_the_left).logits.tolist() == [[0.0, 1.0], [8.0, 9.0]]


@pytest.fixture
def writing(tmp_path, monkeypatch):
    """A function that writes the preset into a workspace with a model that writes, which is the working directory."""
    writers.make(tmp_path)
    monkeypatch.chdir(tmp_path)

    def use(**changes):
        kit.write(preset.PATH, {"small": workspace.merged(small.SMALL | KINDS["writing"], changes)})

    use()
    return use


def test_what_is_written_is_scored_text_by_text_and_the_loss_of_validation_decides(writing):
    chosen = small.training("writing: LoRA r=1")
    found = measure(chosen)
    assert (found.status, found.reason, found.metrics) == ("finished", "", ("exact_match", "rouge_l"))
    first, last = found.test
    assert found.validation == tuple(sorted(found.validation))
    assert last["loss"] < first["loss"]
    assert max(found.validation) < 0  # minus the loss per token
    assert len(found.predicted) == 12
    assert found.score() == pytest.approx(np.mean(found.predicted), abs=1e-6)


def test_the_base_model_alone_is_what_a_fresh_adapter_leaves_whatever_the_seed(writing):
    first, again = (measure(small.training("writing: alone", seed)) for seed in (0, 1))
    assert (first.trained, first.stored, first.file_bytes, first.reason) == (0, 0, 0, "")
    assert (again.test, again.validation) == (first.test, first.validation)
    fresh = measure(small.training("writing: untrained"))
    assert (fresh.test, fresh.validation, fresh.predicted) == (first.test, first.validation, first.predicted)


def test_what_cannot_be_compared_is_refused_before(writing):
    refused(
        check, [small.cell("writing: head")], says="small.methods.head: adapter: head_only: a language model has no"
    )
    writing(sample_sizes={"max_new_tokens": None})
    refused(check, [small.cell("writing: alone")], says="writing: completions are compared by what is written: set sa")
