"""One training of the arena, scored by epoch, with its sizes; and the command that runs what is missing."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import Trainer

from lsr.algebra.rounding import PRECISIONS
from pipeline.arena import __main__ as arena_command
from pipeline.arena import execution, plan, record, task_tokens
from pipeline.arena.measure import build_model, measure
from pipeline.core.errors import UserError
from pipeline.methods import adapters
from pipeline.tasks import scores
from pipeline.training import run as training_run
from tests import tasks
from tests.kit import refused
from tests.pipeline.arena import small
from tests.pipeline.arena.small import training

HEAD = "modules_to_save"


def start(chosen):
    return build_model(chosen, task_tokens.task_of(chosen), task_tokens.splits(chosen)["train"])


def test_a_record_holds_scores_by_epoch_and_the_answers_of_the_selected_one(arena):
    record = measure(training())
    assert record.status == "finished", record.reason
    assert len(record.validation) == len(record.test) == 2
    truth = task_tokens.splits(training())["test"]["label"][:]
    assert len(record.predicted) == len(truth) == 20
    assert record.score() == pytest.approx(accuracy_score(truth, record.predicted), abs=1e-6)
    assert {"accuracy", "f1"} == record.test[0].keys()
    assert (record.trained, record.stored) == (4 * 48, 4 * 48)
    assert record.file_bytes > 4 * record.stored
    assert record.seconds.keys() == {"load", "start", "train", "score"}
    assert record.made["torch"]


@pytest.mark.parametrize("title", ["glue: LoRA r=1", "glue: LSR shared r=2", "ratings: head"])
def test_a_tuned_training_is_scored_in_all_precisions_and_else_the_same(title, arena):
    plain = measure(training(title))
    quantized = measure(dataclasses.replace(training(title), is_quantized=True))
    assert quantized.quantized.keys() == set(PRECISIONS)
    # While a head is trained, a hook adds the mean of numbers to its outputs; afterwards its bias does.
    rounding = 1e-3 if title.startswith("ratings") else 0.0
    assert quantized.quantized["float32"].test == pytest.approx(quantized.test[-1], abs=rounding)
    assert quantized.quantized["float32"].validation == pytest.approx(quantized.validation[-1], abs=rounding)
    sizes = [quantized.quantized[precision].bytes for precision in PRECISIONS]
    assert sizes == sorted(sizes, reverse=True)
    assert quantized.predicted == plain.predicted
    assert plain.quantized == {}


def test_what_is_not_trained_is_scored_once_with_the_head_of_the_short_run(arena):
    params = {**small.LSR, "lsr.init": "warm_start"}
    small.use(methods={"alone": {"adapter": "lsr", "params": params, "trained": False}})
    record = measure(training("glue: alone"))
    assert record.status == "finished", record.reason
    assert (len(record.test), record.trained, record.rate) == (1, 0, None)
    assert record.stored > 0


def test_a_training_run_has_as_many_steps_as_its_preset_wants_and_ends_without_gain(arena, monkeypatch):
    monkeypatch.setattr(training_run, "MIN_STEPS", 10)
    small.use(params={"train.extend_epochs": "auto"})
    assert len(measure(training()).validation) == 4  # of three steps each
    accuracies = iter(2 * [0.5] + 2 * [0.7] + 2 * [0.6] + 2 * [0.7] + 2 * [0.9])  # of validation and test by epoch
    monkeypatch.setattr(scores, "score", lambda *_: {"accuracy": next(accuracies), "f1": 0.5})
    small.use(params={"train.patience": 2, "train.epochs": 9})
    record = measure(training())
    assert (record.status, record.validation, record.selected) == ("finished", (0.5, 0.7, 0.6, 0.7), 3)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_refit_trains_on_train_and_validation_and_replaces_the_scores_of_the_best_epoch(arena, monkeypatch, tuned):
    read = []
    train = Trainer.train

    def recording(trainer, *args, **options):
        result = train(trainer, *args, **options)
        read.append((sorted(trainer.train_dataset["input_ids"][:]), round(trainer.state.epoch)))
        return result

    monkeypatch.setattr(Trainer, "train", recording)
    epochs = {"tuning": {"rates": [1.0], "extra_rates": 0, "head_rates": [], "epochs": [0.5]}} if tuned else {}
    fast = {"train.epochs": 3, "train.head_learning_rate": 0.1}
    small.use(params=fast, **epochs)
    alone = measure(training())
    small.use(params={**fast, "train.refit": True}, **epochs)
    refitted = measure(training())
    assert refitted.status == "finished", refitted.reason
    assert refitted.key != alone.key
    assert refitted.validation == alone.validation
    splits = task_tokens.splits(training())
    texts_of = {split: splits[split]["input_ids"][:] for split in ("train", "validation", "test")}
    best = len(alone.validation) - 1 - alone.validation[::-1].index(max(alone.validation))
    length = 3 if tuned else best + 1
    assert read[1:] == [read[0], (sorted(texts_of["train"] + texts_of["validation"]), length)]
    others = [epoch for epoch in range(len(alone.test)) if epoch != best]
    assert [refitted.test[epoch] for epoch in others] == [alone.test[epoch] for epoch in others]
    truth = splits["test"]["label"][:]
    assert refitted.test[best]["accuracy"] == pytest.approx(accuracy_score(truth, refitted.predicted), abs=1e-6)
    assert refitted.predicted != alone.predicted


def test_balanced_classes_have_the_weights_of_scikit_learn_in_every_batch(arena, monkeypatch):
    losses = []

    def compute(trainer, model, inputs, return_outputs=False, **options):
        loss, outputs = usual(trainer, model, inputs, return_outputs=True, **options)
        losses.append((loss.detach(), outputs["logits"].detach(), inputs["labels"]))
        return (loss, outputs) if return_outputs else loss

    usual = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", compute)
    plain = measure(training())
    losses.clear()
    # 35 rows, of which the first class has fewer.
    small.use(params={"train.class_weights": "balanced", "train.batch_size": 8}, sample_sizes={"train": 35})
    balanced = measure(training())
    labels = np.array(task_tokens.splits(training())["train"]["label"][:])
    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert len(set(weights)) == 2
    assert len(losses) == 2 * 5  # epochs and steps
    for loss, logits, wanted in losses:
        each = [
            F.cross_entropy(row[None], label[None]) * weights[label] for row, label in zip(logits, wanted, strict=True)
        ]
        torch.testing.assert_close(loss, torch.stack(each).mean().float())
    assert balanced.key != plain.key


def test_a_training_that_diverges_is_a_record_with_its_reason(arena, monkeypatch):
    compute = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", lambda *args, **options: compute(*args, **options) * math.inf)
    record = measure(training())
    assert record.status == "diverged"
    assert "lower the learning rate" in record.reason
    assert record.validation == record.test == record.predicted == ()


def test_what_a_method_raises_is_its_reason_and_what_the_machine_refuses_is_not(arena, monkeypatch):
    broken = Mock(side_effect=RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand more"))
    monkeypatch.setattr(Trainer, "compute_loss", broken)
    record = measure(training())
    assert (record.status, record.reason) == ("failed", "RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    broken.side_effect = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="allocate"):
        measure(training())


def test_choices_are_compared_as_one_example(arena, tmp_path):
    tasks.use_files(arena, "copa")
    small.use(tasks={"copa": {}})
    with pytest.raises(UserError, match="in groups, which must stay whole: set all of sample_sizes to all"):
        task_tokens.splits(training("copa: head"))
    small.use(tasks={"copa": {}}, sample_sizes=dict.fromkeys(("train", "validation", "test", "max_tokens"), "all"))
    chosen = training("copa: head")
    task_tokens.write_labels(chosen, tmp_path / "copa.csv")
    table = pd.read_csv(tmp_path / "copa.csv")
    record = measure(chosen)
    assert len(table) == len(record.predicted)
    assert record.score() == pytest.approx((table["label"].to_numpy() == np.array(record.predicted)).mean(), abs=1e-6)


def test_methods_start_with_the_same_head(arena):
    small.use(methods={"odd": {"adapter": "vera"}})
    heads = [
        [value.detach().numpy() for name, value in start(one).named_parameters() if "modules_to_save" in name]
        for one in (training(), training("glue: LSR shared r=2"), training("glue: odd"), training("glue: head"))
    ]
    assert all(np.array_equal(*pair) for other in heads[1:] for pair in zip(heads[0], other, strict=True))


def test_a_warm_start_goes_on_from_a_short_run_with_its_head_the_same_each_time(arena):
    small.use(methods={"warm": {"adapter": "lsr", "params": {**small.LSR, "lsr.init": "warm_start"}}})
    chosen = training("glue: warm")
    fresh, first, again = (start(one).state_dict() for one in (training(), chosen, chosen))
    heads = [name for name in first if HEAD in name]
    assert heads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], fresh[name]) for name in heads)
    assert all(value.any() for name, value in first.items() if name.endswith("core"))
    assert measure(chosen).status == "finished"


def test_an_adapter_that_training_goes_on_from_is_read_and_is_in_the_key(arena, tmp_path):
    inits = {"warm": "warm_start", "on": str(tmp_path)}
    keys = set()
    small.use(methods={one: {"adapter": "lsr", "params": {**small.LSR, "lsr.init": its}} for one, its in inits.items()})
    for seed in (0, 1):
        adapters.save_adapter(start(training("glue: warm", seed)), tmp_path, training().view.base_model)
        plan.digests_of.cache_clear()
        keys.add(training("glue: on").key)
    assert len(keys) == 2
    assert measure(training("glue: on")).reason == ""


RECORDS = record.FOLDER / "small" / "records.jsonl"


def run(*words):
    arena_command.main(["small", *words])


@pytest.fixture
def in_threads(monkeypatch):
    """Workers in this process, which import nothing again."""
    monkeypatch.setattr(execution, "workers", ThreadPoolExecutor)


def test_it_runs_what_is_missing_and_nothing_twice(arena, in_threads, capsys):
    small.use(seeds=[0, 1, 2])
    run("--only", "glue: LoRA r=1", "--jobs", "1")
    lines = RECORDS.read_text().splitlines()
    assert len(lines) == 2 + 2  # the tries, of which the best is the first seed, and two more seeds
    assert capsys.readouterr().out.endswith("compare: python -m pipeline.compare small\n")
    labels = RECORDS.parent.joinpath("labels/glue.csv").read_text().splitlines()
    assert labels[0] == "label"
    assert len(labels) == 1 + len(json.loads(lines[0])["predicted"])
    run("--only", "glue: LoRA r=1")
    assert RECORDS.read_text().splitlines() == lines
    RECORDS.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])  # as a kill leaves it
    run("--only", "glue: LoRA r=1", "--jobs", "1")
    keys = [json.loads(line)["key"] for line in RECORDS.read_text().splitlines()]
    assert keys == [json.loads(line)["key"] for line in lines]


def test_labels_of_files_stay_in_the_cache(arena, in_threads):
    run("--only", "ratings: head", "--jobs", "1")
    assert not (record.FOLDER / "small/labels/ratings.csv").exists()
    assert plan.PRIVATE.joinpath("small/ratings.csv").exists()


def test_an_unknown_entry_is_told_from_the_nearest(arena):
    says = "no method on a task has this in its title; did you mean glue: LoRA r=1?; a title is TASK: METHOD"
    refused(run, "--only", "glue: LoRA r=2", says=says)
