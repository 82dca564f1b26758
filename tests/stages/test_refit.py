"""Training a second time on train and validation, compared with training once on a file that has the texts of both.

tests/references/test_training.py compares it with a plain loop.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsr.serve.bank import AdapterBank
from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.training.run import Progress
from tests import workspace
from tests.kit import digests, refused, write
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, KilledError, report, run
from tests.stages.shops import LABELS, rows

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

PRECISE = {"shared_adapter": "trained", "head": "shared", "precision": "float32"}
FILES = {"train": "both.csv", "validation": "validation.csv", "test": "test.csv"}


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """A workspace with three tenants, two of which have the same labels; nothing has run."""
    training = {"epochs": 1, "head_learning_rate": 0.01, "refit": True}
    workspace.make(tmp_path, data="shops", adapter="lora", tenants=PRECISE, train=training)
    monkeypatch.chdir(tmp_path)
    write("data/shops.csv", rows(LABELS))
    write("data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    return tmp_path


def rows_of(*splits):
    """The rows of the user's file that are in splits, in the order in which training reads them."""
    made = {row["text"]: row for row in rows(LABELS)}
    return [made[text] for split in splits for text in tokens.load_texts(split)["text"][:]]


def before_calibration():
    """The tensors of the adapter, with the rows of each tenant times its temperature."""
    stored = load_file(artifacts.ADAPTER / WEIGHTS)
    temperatures = report(artifacts.ADAPTER / "task.json")["temperatures"]
    widths = torch.tensor([len(labels) for labels in LABELS.values()])
    of_rows = torch.tensor(temperatures).repeat_interleave(widths)
    for name, tensor in stored.items():
        if "out_proj" in name:
            stored[name] = tensor * of_rows.reshape(-1, *[1] * (tensor.dim() - 1))
    return stored


def test_tenants_are_trained_as_if_the_file_for_training_had_the_texts_of_both(shops):
    # Steps of all texts, without dropout, since files are read in another order.
    config = json.loads(Path("tiny-roberta/config.json").read_text())
    write("tiny-roberta/config.json", config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    workspace.change(train={"epochs": 3, "batch_size": 200, "head_learning_rate": 0.03})
    run(TOKENIZE, FACTORIZE, TRAIN)
    assert report(artifacts.TRAIN_METRICS)["best_epoch"] == 3
    refitted = before_calibration()
    bank = AdapterBank.load("tiny-roberta", artifacts.BANK)
    temperatures = report(artifacts.ADAPTER / "task.json")["temperatures"]
    write("both.csv", rows_of("train", "validation"))
    others = rows_of("test")
    write("validation.csv", others[::2])
    write("test.csv", others[1::2])
    both = workspace.ROWS["shops"] | {"source": {"kind": "files", "files": FILES}}
    both.pop("split")
    write("data/datasets.yaml", {"shops": both})
    workspace.change(train={"refit": False})
    run(TOKENIZE, FACTORIZE, TRAIN)
    assert report(artifacts.TRAIN_METRICS)["best_epoch"] == 3
    once = before_calibration()
    assert once.keys() == refitted.keys()
    for name, expected in once.items():
        torch.testing.assert_close(refitted[name], expected, rtol=1e-4, atol=1e-5)
    assert report(artifacts.ADAPTER / "task.json")["temperatures"] != temperatures  # validation was read in training
    assert list(bank.groups) == list(AdapterBank.load("tiny-roberta", artifacts.BANK).groups)


@pytest.mark.parametrize("head", ["auto", "shared"])
def test_a_run_that_is_killed_while_it_trains_again_resumes_to_the_same_bytes(head, shops, monkeypatch):
    workspace.change(train={"epochs": 3}, tenants={"head": head})
    run(TOKENIZE, FACTORIZE, TRAIN)
    whole = digests("artifacts", "reports")
    began = []

    def die(self, args, state, control, **_):
        if len(began) == 2 and state.epoch > 1.5:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", die)
        patch.setattr(Progress, "on_train_begin", lambda *_, **options: began.append(1))
        with pytest.raises(KilledError):
            run(TRAIN)
    run(TRAIN)
    assert digests("artifacts", "reports") == whole
    workspace.change(train={"refit": False})
    run(TRAIN)
    assert digests("artifacts/adapter") != {name: whole[name] for name in digests("artifacts/adapter")}


def test_the_card_says_on_what_it_was_trained(shops):
    run(TOKENIZE, FACTORIZE, TRAIN)
    card = (artifacts.ADAPTER / "README.md").read_text(encoding="utf-8")
    assert "which chose the number of epochs of a second training run, on train and validation together." in card
    assert '"refit": true' in card


def test_it_is_refused_where_there_is_no_validation_split_or_no_training_loop(shops):
    usual = {"epochs": "auto", "head_learning_rate": 0.002}
    workspace.change(adapter="regression", tenants={"head": "auto"}, train=usual)
    reason = "adapter: regression has no training loop"
    assert f"train.refit: True has no effect: {reason}" in refused(params.load, params.TrainView)
    of_test = workspace.ROWS["shops"] | {"split": {"test": 0.4}, "select_on": "test"}
    write("data/datasets.yaml", {"shops": of_test})
    workspace.change(adapter="lora")
    assert "train.refit: True has no effect: the data have no validation split" in refused(
        params.load, params.TrainView
    )
