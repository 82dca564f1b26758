"""What a language model writes on a task of the arena, with an adapter and alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import generation
from pipeline.arena import preset, record, task_tokens
from pipeline.arena.compete import check
from pipeline.arena.measure import measure
from pipeline.compare import bootstrap, labels
from tests import kit, workspace, writers
from tests.kit import refused
from tests.pipeline.arena import small

TASK = {
    "model": "writer",
    "tasks": {"writing": {}},
    "reads": {"train": 40, "validation": 8, "test": 12, "longest": "all", "new_tokens": 5},
    "methods": {
        "alone": {"adapter": "head", "trained": False},
        "LoRA r=1": {"adapter": "lora", "params": {"lora.r": 1, "lora.lora_alpha": 2, "lora.learning_rate": 0.02}},
        "untrained": {"adapter": "lora", "trained": False},
        "head": {"adapter": "head"},
    },
}


@pytest.fixture
def writing(tmp_path, monkeypatch):
    """A function that writes the preset into a workspace with a model that writes, which is the working directory."""
    writers.make(tmp_path)
    monkeypatch.chdir(tmp_path)

    def use(**changes):
        kit.write(preset.PATH, {"small": workspace.merged(small.SMALL | TASK, changes)})

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


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l"])
def test_intervals_are_over_texts_whose_content_no_file_holds(metric, writing, monkeypatch):
    row = {**writers.ROW, "metrics": [metric]}
    path = Path("pipeline/datasets.yaml")
    kit.write(path, workspace.read_yaml(path) | {"writing": row})
    monkeypatch.setattr(generation, "write", lambda *asked, **options: ["in the barn"] * 12)
    found = measure(small.training("writing: alone"))
    assert 0 < found.score() < 1
    task_tokens.write_labels(small.training("writing: alone"), path := record.labels_path("small", "writing"))
    parts = labels._parts("writing", pd.read_csv(path))
    predicted = np.array(found.predicted)
    assert parts["writing"].tolist() == [1] * 12
    assert labels.score(metric, predicted, parts) == pytest.approx(found.score(), abs=1e-6)
    drawn = bootstrap.scores("writing", metric, parts["writing"].to_numpy(), [predicted, 0 * predicted], 400)
    assert drawn[0].mean() == pytest.approx(found.score(), abs=0.02)
    assert drawn[0].std() > drawn[1].std() == 0


def test_the_base_model_alone_is_asked_once_and_is_what_a_fresh_adapter_leaves(writing, monkeypatch):
    first, written = measure(small.training("writing: alone")), generation.write
    monkeypatch.setattr(generation, "write", None)
    again = measure(small.training("writing: alone", seed=1))
    assert (first.trained, first.stored, first.file_bytes, first.reason) == (0, 0, 0, "")
    assert (again.seed, again.status) == (1, "finished")
    assert again.test == first.test
    monkeypatch.setattr(generation, "write", written)
    fresh = measure(small.training("writing: untrained"))
    assert (fresh.test, fresh.validation, fresh.predicted) == (first.test, first.validation, first.predicted)


def test_what_cannot_be_compared_is_refused_before(writing):
    refused(check, [small.entry("writing: head")], says="small.methods.head: adapter: head: a model that writes has no")
    writing(reads={"new_tokens": None})
    refused(check, [small.entry("writing: alone")], says="writing: completions are compared by what is written: set re")
