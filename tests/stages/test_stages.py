"""The stages after one another on a tiny RoBERTa and a GLUE-shaped folder, in this process."""

import json
import math
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.stage import run as start_stage
from pipeline.training import checkpoints, processes
from pipeline.training import run as training
from tests import workspace
from tests.kit import digests, refused, write
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, KilledError, killed_training, report, run


def written():
    return digests("artifacts", "reports")


def test_cards_say_how_it_was_trained_with_the_scores_of_validation_and_of_test(after):
    after()
    trained, scores = report(artifacts.TRAIN_METRICS), report(artifacts.EVALUATE_METRICS)
    text = ModelCard.load(artifacts.ADAPTER / "README.md").text
    assert f"accuracy {trained['best_score']:.4g} on the validation split" in text
    assert f"{scores['adapter_trained']:,} of the adapter were trained" in text
    assert "dvc exp run -S data=glue -S model=tiny -S adapter=lsr -S seed=0" in text
    found = ModelCard.load(artifacts.CARD)
    low, high = (f"{scores[f'accuracy_{end}']:.4g}" for end in ("low", "high"))
    assert f"| accuracy | {scores['accuracy']:.4g} | {low} to {high} |" in found.text
    assert '"rank_shape": [2, 2]' in found.text
    assert found.data.metrics == ["accuracy", "f1"]
    assert {one.dataset_split for one in found.data.eval_results} == {"test"}
    assert found.data.eval_results[0].metric_value == pytest.approx(scores["accuracy"], abs=1e-6)


def test_two_runs_write_the_same_bytes(after):
    after()
    first = written()
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert written() == first


@pytest.mark.usefixtures("trials")
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(after, monkeypatch):
    after(train={"epochs": 3}, lsr={"dropout": 0.1})
    run(FACTORIZE, TRAIN)
    undisturbed = digests("artifacts/adapter", "reports/train")
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())

    killed_training(monkeypatch, 1.3)
    assert len(list(Path(".checkpoints").glob("*/checkpoint-*"))) == 1
    steps = []
    monkeypatch.setattr(
        training.Progress, "on_step_end", lambda self, args, state, *_, **__: steps.append(state.global_step)
    )
    run(TRAIN)
    assert digests("artifacts/adapter", "reports/train") == undisturbed
    assert steps[0] > 1
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file):
    file.write_bytes(b"")


def zeroed(file):  # what a file can be after a power cut, whatever its size
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def in_another_encoding(file):
    file.write_bytes(b"\xe9" + file.read_bytes()[1:])


def deep(file):
    file.write_bytes(b"[" * 100_000)


def a_pipe(file):
    file.unlink()
    os.mkfifo(file)


DAMAGES = [cut, emptied, zeroed, flipped, in_another_encoding, deep, a_pipe, Path.unlink]


@pytest.fixture
def killed(after, monkeypatch):
    """The digests of an undisturbed run, and the folder of one that was killed with two checkpoints."""
    after(train={"epochs": 3})
    run(FACTORIZE, TRAIN)
    undisturbed = digests("artifacts/adapter", "reports/train")
    killed_training(monkeypatch, 1.3)
    (folder,) = (path for path in Path(".checkpoints").iterdir() if path.is_dir())
    shutil.copytree(folder, "first")
    killed_training(monkeypatch, 2.3)
    shutil.copytree("first", folder, dirs_exist_ok=True)
    shutil.copytree(folder, "both")
    return undisturbed, folder


def test_whatever_is_damaged_in_a_checkpoint_it_is_skipped_with_a_line_and_never_unpickled(
    killed, monkeypatch, capfd, trials
):
    _, folder = killed
    first, second = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[-2:]
    assert checkpoints.newest(folder) == second
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is unpickled"))
    names = [path.relative_to(second) for path in second.rglob("*") if path.is_file()]
    assert {"trainer_state.json", "optimizer.pt", "README.md", "checksums.json"} <= set(map(str, names))
    for name in names:
        for damage in DAMAGES:
            trials["trials"] += 1
            damage(second / name)
            capfd.readouterr()
            assert checkpoints.newest(folder) == first, (name, damage)
            assert capfd.readouterr().out.count(f"{second}: incomplete checkpoint (killed or power loss), skipped") == 1
            assert not second.exists()  # nothing is left that might be read when it is written again
            shutil.copytree("both", folder, dirs_exist_ok=True)


DAMAGED = [  # files of the newest checkpoint
    {"trainer_state.json": zeroed},
    {"trainer_state.json": in_another_encoding},
    {"optimizer.pt": zeroed},
    {WEIGHTS: cut, "README.md": in_another_encoding},  # which PEFT reads where it writes a checkpoint
    {"checksums.json": emptied},
]


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize("damages", DAMAGED)
def test_training_ends_with_the_same_bytes_whatever_is_damaged_in_its_checkpoint(damages, killed):
    undisturbed, folder = killed
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for name, damage in damages.items():
        damage(newest / name)
    run(TRAIN)
    assert digests("artifacts/adapter", "reports/train") == undisturbed


def test_a_checkpoint_has_checksums_once_the_disk_has_its_files(tmp_path, monkeypatch):
    checkpoint, synced = tmp_path / "run/checkpoint-1", []
    sealed = checkpoint / "checksums.json"

    def fsync(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), sealed.exists()))

    names = ["a.bin", "b/c.json"]
    files = [write(checkpoint / name, name) for name in names]
    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.seal(checkpoint)
    assert synced[:2] == [(file, False) for file in files]
    assert {sealed, checkpoint / "b", checkpoint, checkpoint.parent} <= {path for path, _ in synced}
    listed = subprocess.run(["sha256sum", *files], capture_output=True, text=True, check=True).stdout.split()
    assert json.loads(sealed.read_text()) == dict(zip(names, listed[::2], strict=True))


LAST = 4  # epoch
EQUALS = [  # validation scores and losses by epoch, and the epoch that is kept
    ([(0.7, 0.5), (0.7, 0.6), (0.7, 0.4), (0.6, 0.1)], 3),  # of equal scores the lowest loss
    ([(0.7, 0.5), (0.7, 0.6), (0.6, 0.1), (0.7, 0.5)], LAST),  # of equal losses the last epoch
]


@pytest.mark.parametrize(("looks", "best"), EQUALS)
def test_of_epochs_with_equal_scores_the_later_one_of_the_lower_loss_is_kept(after, monkeypatch, looks, best):
    after(train={"epochs": LAST})
    weights = {}

    def evaluation_loop(trainer, *_, **__):
        epoch = round(trainer.state.epoch)
        weights[epoch] = {name: value.clone() for name, value in get_peft_model_state_dict(trainer.model).items()}
        score, loss = looks[epoch - 1]
        return EvalLoopOutput(None, None, {"eval_score": score, "eval_loss": loss}, 1)

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluation_loop)
    killed_training(monkeypatch, LAST - 0.7)
    run(TRAIN)
    found = report(artifacts.TRAIN_METRICS)
    assert (found["best_epoch"], found["best_score"]) == (best, looks[best - 1][0])
    kept = load_file(artifacts.ADAPTER / WEIGHTS)
    (temperature,) = report(artifacts.ADAPTER / "task.json")["temperatures"]
    for name, value in kept.items():
        divisor = temperature if "out_proj" in name else 1.0  # the last layer of the head is calibrated
        assert torch.equal(value, weights[best][name] / divisor), name


def test_patience_ends_training_after_the_same_epoch_also_if_it_is_killed_there(after, monkeypatch, capfd):
    after(train={"epochs": 9, "patience": 2})
    looks = [0.5, 0.7, 0.6, 0.7, 0.9]  # an equal score is no better one, though its epoch is kept

    def evaluation_loop(trainer, *_, **__):
        return EvalLoopOutput(None, None, {"eval_score": looks[round(trainer.state.epoch) - 1], "eval_loss": 1.0}, 1)

    def kill(*_):
        raise KilledError

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluation_loop)
    run(TRAIN)
    found, undisturbed = report(artifacts.TRAIN_METRICS), digests("artifacts/adapter", "reports/train")
    assert (found["best_epoch"], found["best_score"], found["read"]) == (4, 0.7, 4 * 130)
    assert "train: stopped after 4 of 9 epochs, by train.patience: 2\n" in capfd.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_load_best_model", kill)
        with pytest.raises(KilledError):
            run(TRAIN)
    monkeypatch.setattr(training.Progress, "on_step_end", kill)  # no step is left
    run(TRAIN)
    assert digests("artifacts/adapter", "reports/train") == undisturbed


@pytest.mark.parametrize(("rows", "epochs"), [(128, 30), (950, 5), (16_000, 2)])
def test_few_texts_get_as_many_epochs_as_make_300_steps_but_30_at_most(after, rows, epochs):
    after(train={"extend_epochs": "auto"})
    view = training.with_enough_steps(params.load(params.TrainView), range(rows))
    assert view.train.epochs == epochs


def test_a_line_says_how_many_epochs_make_enough_steps(after, monkeypatch, capfd):
    after(train={"extend_epochs": "auto"})
    monkeypatch.setattr(training, "MIN_STEPS", 20)
    run(TRAIN)
    assert "train: 3 epochs of 9 steps, 27, by train.extend_epochs: auto" in capfd.readouterr().out
    assert report(artifacts.TRAIN_METRICS)["steps"] == 27


def test_a_checkpoint_is_found_by_what_trains_and_by_nothing_else(after):
    """By the code, too: tests/test_contracts.py says by which of it."""
    after()
    view = params.load(params.TrainView)
    here = checkpoints.checkpoint_folder(view)
    assert checkpoints.checkpoint_folder(view.model_copy(update={"seed": 1})) != here
    section = view.section.model_copy(update={"alpha": 1.0})
    assert checkpoints.checkpoint_folder(view.model_copy(update={"section": section})) != here
    (artifacts.ADAPTER / "adapter_config.json").write_text("changed")
    assert checkpoints.checkpoint_folder(view) == here
    (artifacts.INIT / "adapter_config.json").write_text("changed")
    assert checkpoints.checkpoint_folder(view) != here


def test_dvclive_writes_into_runs_alone_and_changes_no_byte(after):
    folder = after()
    before = digests("artifacts", "reports")
    begin = "git init --quiet && dvc init --quiet && git -c user.name=a -c user.email=b commit --quiet --message Begin"
    subprocess.run(["bash", "-c", begin], check=True)
    git = digests(".git")
    workspace.change(train={"report_to": ["dvclive"]})
    with patch.dict(os.environ):  # trackers are told there to stay offline: nothing of that for other tests
        run(TRAIN)
    assert digests("artifacts", "reports") == before
    assert digests(".git") == git
    live = folder / "runs/dvclive/glue-tiny-lsr-seed0"
    assert (live / "plots/metrics/eval/score.tsv").read_text().count("\n") == 3
    score = report(artifacts.TRAIN_METRICS)["last_score"]
    assert report(live / "metrics.json")["eval"]["score"] == pytest.approx(score, abs=1e-6)
    assert not list(folder.rglob("dvc.yaml"))


def test_what_the_machine_cannot_do_is_a_line(after, monkeypatch, capsys):
    after(train={"precision": "fp16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(run, TRAIN, says="params.yaml: train.precision: fp16 needs a GPU, and there is none")
    workspace.change(train={"precision": "fp32"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    refused(run, TRAIN, says="cannot be divided equally among 3 processes or GPUs")
    workspace.change(train={"precision": "bf16"})
    monkeypatch.setattr(processes, "has_fast_bf16", lambda: False)
    with pytest.raises(UserError, match=r"train.batch_size"):  # after a line that is no mistake
        run(TRAIN)
    assert "no instructions for bf16, so train.precision: fp32 would be faster" in capsys.readouterr().out


def test_a_training_that_diverges_ends_in_one_line(after, monkeypatch):
    after()
    shutil.rmtree(artifacts.ADAPTER)
    usual = Trainer.compute_loss

    def infinite(*args, **options):
        found = usual(*args, **options)
        return found if isinstance(found, tuple) else found * math.inf

    monkeypatch.setattr(Trainer, "compute_loss", infinite)
    line = refused(run, TRAIN, says=" steps: lower the learning rate")
    assert re.search(r"train: the loss is (nan|inf) after \d+ ", line)
    assert not artifacts.ADAPTER.exists()


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize("stage", [TOKENIZE, FACTORIZE, TRAIN, EVALUATE], ids=lambda stage: stage[0].__name__)
def test_a_full_disk_ends_a_stage_in_one_line_with_its_outputs_as_they_were(after, stage, monkeypatch, capsys):
    after()
    monkeypatch.setattr("sys.argv", ["stage"])
    before, (most, hard) = written(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes of a file, as if no more were left
    try:
        with pytest.raises(SystemExit) as end:
            start_stage(stage[0].main, stage[1], "a stage")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert (end.value.code in (1, 2), line.endswith("File too large")) == (True, True), line
    assert written() == before


def test_a_broken_weight_is_one_line_and_so_is_a_stage_without_the_one_before(after):
    folder = after(lsr={"init": "random"})
    path = folder / "tiny-roberta/model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.1.attention.self.value.weight"].fill_(math.nan)
    save_file(weights, path, metadata={"format": "pt"})
    line = refused(run, FACTORIZE, says="a finite matrix, got one of norm nan")
    assert "encoder.layer.1.attention.self.value" in line
    shutil.rmtree(artifacts.INIT)
    refused(run, TRAIN, says="artifacts/init: no such folder")
    workspace.change(lsr={"init": "gradient"})
    shutil.rmtree(artifacts.TOKENS)
    refused(run, FACTORIZE, says="artifacts/tokens/train.arrow: not found; run python -m stages.tokenize")


def test_a_model_that_is_another_one_or_not_there_is_one_line(after, monkeypatch):
    folder = after()
    (folder / "tiny-roberta").rename(folder / "narrow")
    refused(run, FACTORIZE, says="pipeline/models.yaml: cannot load tiny-roberta: ")
    monkeypatch.setattr(workspace, "SIZES", workspace.SIZES | {"hidden_size": 32})
    workspace.save_tiny_roberta(folder / "tiny-roberta")
    refused(run, EVALUATE, says="artifacts/adapter: does not fit the base model")


def test_balanced_classes_train_another_adapter_and_other_labels_have_none(after):
    after()
    plain = load_file(artifacts.ADAPTER / WEIGHTS)
    table = pd.read_parquet("glue/mrpc/train-00000.parquet")
    table.query("label == 0 or idx % 3 == 0").to_parquet("glue/mrpc/train-00000.parquet", index=False)
    run(TOKENIZE, TRAIN)
    rare = load_file(artifacts.ADAPTER / WEIGHTS)
    workspace.change(train={"class_weights": "balanced"})
    run(TRAIN)
    balanced = load_file(artifacts.ADAPTER / WEIGHTS)
    assert not any(balanced[name].equal(rare[name]) for name in plain)
    assert '"class_weights": "balanced"' in (artifacts.ADAPTER / "README.md").read_text()
    workspace.change(data="ratings")
    run(TOKENIZE, FACTORIZE)
    refused(run, TRAIN, says="params.yaml: train.class_weights: balanced needs a label of classes, and no tenants")
