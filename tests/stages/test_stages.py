"""The stages after one another on a tiny RoBERTa and a GLUE-shaped folder, in this process, for each adapter."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput

from lsr.tuner import start_report
from lsr.tuner.linear import adapted_layers
from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import tokens
from pipeline.evaluation import inference
from pipeline.methods import adapters, base_models
from pipeline.training import arguments, callbacks
from pipeline.training import run as training
from tests import workspace
from tests.stages.running import (
    EVALUATE,
    FACTORIZE,
    TOKENIZE,
    TRAIN,
    base_model,
    base_of,
    digests,
    logits,
    report,
    run,
)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A function that makes the workspace, with changes to params.yaml, and goes there."""

    def make(**changes):
        workspace.make(tmp_path, **changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    monkeypatch.delenv("DVC_ROOT", raising=False)
    return make


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_an_untrained_adapter_leaves_the_base_model_as_it_was(after, adapter):
    after(adapter)
    view = params.load(params.TrainView)
    model = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=False)
    assert torch.equal(logits(model), logits(base_model(view)))


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_a_run_scores_the_adapter_that_it_trained(after, adapter):
    after(adapter)
    scores, trained = report(artifacts.EVALUATE_METRICS), report(artifacts.TRAIN_METRICS)
    assert scores["score"] == scores["accuracy"] == pytest.approx(1.0, abs=0.5)
    assert scores["accuracy_low"] <= scores["accuracy"] <= scores["accuracy_high"]
    assert scores["merge_difference"] < 1e-5
    assert scores["adapter_bytes"] == (artifacts.ADAPTER / adapters.WEIGHTS).stat().st_size
    for count in ("adapter_trained", "adapter_stored", "adapter_effective", "head_parameters", "base_parameters"):
        assert scores[count] == trained[count] == report(artifacts.FACTORIZE_METRICS)[count]
    rows = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    assert len(rows) == scores["examples"] == 40
    right = np.mean([row["actual"] == row["predicted"] for row in rows])
    assert right == pytest.approx(scores["accuracy"])
    assert rows[0]["text"].startswith("the ")
    assert artifacts.EVALUATE_PICTURE.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_exactly_the_adapter_and_the_head_move(after, adapter):
    after(adapter)
    before, after = (load_file(folder / adapters.WEIGHTS) for folder in (artifacts.INIT, artifacts.ADAPTER))
    assert before.keys() == after.keys()
    # The Trainer gives RoBERTa one kind of text only and pads with position 1: those rows get no gradient.
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    view = params.load(params.TrainView)
    model = PeftModel.from_pretrained(base_model(view), artifacts.ADAPTER)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base_model(view)))
    assert not torch.equal(logits(model), logits(base_model(view)))


def test_parameters_are_counted_apart(after):
    after()
    counts = report(artifacts.FACTORIZE_METRICS)
    # 24 = 6 * 4: s * (2*6 + 2*4) * 2 sides * 4 layers; the head has a dense layer and two outputs.
    assert counts["adapter_trained"] == 2 * (2 * 6 + 2 * 4) * 2 * 4
    assert counts["head_parameters"] == 24 * 24 + 24 + 24 * 2 + 2
    stored = load_file(artifacts.INIT / adapters.WEIGHTS)
    assert sum(map(torch.numel, stored.values())) == counts["adapter_trained"] + counts["head_parameters"]


def test_the_best_epoch_is_what_is_written(at):
    at(train={"epochs": 3}, lsr={"learning_rate": 0.05})
    run(TOKENIZE, FACTORIZE, TRAIN)
    view = params.load(params.TrainView)
    model = adapters.load_adapter(base_model(view), artifacts.ADAPTER, trainable=False)
    split = tokens.load_tokens("validation")
    outputs = inference.logits(
        model, split, tokens.collator(base_models.load_tokenizer(view.base_model)), 16, lambda done: None
    )
    labels = np.array(split["label"])
    found = arguments.scorer(view.dataset)(EvalPrediction(outputs.numpy(), labels))["score"]
    assert found == pytest.approx(report(artifacts.TRAIN_METRICS)["best_score"], abs=1e-6)


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_two_runs_write_the_same_bytes(after, adapter):
    after(adapter)
    first = digests("artifacts") | digests("reports")
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert digests("artifacts") | digests("reports") == first


class KilledError(Exception):
    pass


def kill_in_the_second_epoch(self, args, state, control, **_):
    if state.epoch > 1.3:
        raise KilledError


def kill_in_the_last_epoch(self, args, state, control, **_):
    if state.epoch > LAST - 0.7:
        raise KilledError


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(at, monkeypatch):
    at(train={"epochs": 3}, lsr={"dropout": 0.1})
    run(TOKENIZE, FACTORIZE, TRAIN)
    undisturbed = digests("artifacts/adapter") | digests("reports/train")
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_step_end", kill_in_the_second_epoch)
        with pytest.raises(KilledError):
            run(TRAIN)
    assert len(list(Path(".checkpoints").glob("*/checkpoint-*"))) == 1
    steps = []
    monkeypatch.setattr(
        callbacks.Progress, "on_step_end", lambda self, args, state, *_, **__: steps.append(state.global_step)
    )
    run(TRAIN)
    assert digests("artifacts/adapter") | digests("reports/train") == undisturbed
    assert steps[0] > 1
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())


LAST = 4  # epoch
EQUALS = [  # validation scores and losses by epoch, and the epoch that is kept
    ([(0.5, 1.0), (0.7, 0.5), (0.6, 0.1), (0.6, 0.1)], 2),  # the best score, whatever the loss
    ([(0.7, 0.5), (0.7, 0.6), (0.7, 0.4), (0.7, 0.45)], 3),  # of equal scores the lowest loss
    ([(0.7, 0.5), (0.7, 0.6), (0.6, 0.1), (0.7, 0.5)], LAST),  # of equal losses the last epoch
    ([(0.7, 0.4), (0.7, 0.6), (0.6, 0.1), (0.7, 0.5)], 1),
]


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize(("looks", "best"), EQUALS)
def test_of_epochs_with_equal_scores_the_later_one_of_the_lower_loss_is_kept(
    after, monkeypatch, looks, best, is_killed
):
    after(train={"epochs": LAST})
    weights = {}

    def evaluation_loop(trainer, *_, **__):
        epoch = round(trainer.state.epoch)
        weights[epoch] = {name: value.clone() for name, value in get_peft_model_state_dict(trainer.model).items()}
        score, loss = looks[epoch - 1]
        return EvalLoopOutput(None, None, {"eval_score": score, "eval_loss": loss}, 1)

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluation_loop)
    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(callbacks.Progress, "on_step_end", kill_in_the_last_epoch)
            with pytest.raises(KilledError):
                run(TRAIN)
    run(TRAIN)
    found = report(artifacts.TRAIN_METRICS)
    assert (found["best_epoch"], found["best_score"]) == (best, looks[best - 1][0])
    kept = load_file(artifacts.ADAPTER / adapters.WEIGHTS)
    assert kept.keys() == weights[best].keys()
    assert all(torch.equal(value, weights[best][name]) for name, value in kept.items())
    others = [epoch for epoch in weights if epoch != best]
    assert not any(torch.equal(next(iter(kept.values())), next(iter(weights[epoch].values()))) for epoch in others)


def test_a_checkpoint_of_other_params_is_not_taken_up(after):
    after()
    view = params.load(params.TrainView)
    here = training.checkpoint_folder(view)
    assert training.checkpoint_folder(view.model_copy(update={"seed": 1})) != here
    section = view.section.model_copy(update={"alpha": 1.0})
    assert training.checkpoint_folder(view.model_copy(update={"section": section})) != here
    artifacts.INIT.joinpath("adapter_config.json").write_text("{}")
    assert training.checkpoint_folder(view) != here


def test_a_checkpoint_is_orphaned_by_changes_of_what_trains_and_of_nothing_else(after, tmp_path, monkeypatch):
    after()
    code = tmp_path / "code"
    for name in ("lsr", "pipeline", "stages"):
        shutil.copytree(workspace.ROOT / name, code / name)
    shutil.copy(workspace.ROOT / "dvc.yaml", code)
    view = params.load(params.TrainView)
    here = training.checkpoint_folder(view)
    monkeypatch.setattr(training, "CODE", code)
    assert training.checkpoint_folder(view) == here  # wherever the code is: experiments run in copies
    for changed in ("lsr/convert/export.py", "lsr/__main__.py", "pipeline/predict/inputs.py", "stages/evaluate.py"):
        code.joinpath(changed).write_text("changed")
        assert training.checkpoint_folder(view) == here, changed
    for changed in ("lsr/tuner/model.py", "lsr/__init__.py", "pipeline/training/run.py", "stages/train.py"):
        code.joinpath(changed).write_text("changed")
        here, before = training.checkpoint_folder(view), here
        assert here != before, changed


def test_the_head_and_the_small_factors_have_their_own_learning_rates(at):
    at(train={"head_learning_rate": 0.5}, lsr={"learning_rate": 0.25, "separation_rank": 4})
    rates = {".classifier.": 0.5, ".factor_A2": 0.125, ".factor_B2": 0.125}  # 1 / sqrt(4) of the others'
    run(FACTORIZE)
    view = params.load(params.TrainView)
    model = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=True)
    optimizer = arguments.optimizer(model, view)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == next((rate for part, rate in rates.items() if part in name), 0.25)
            assert (group["weight_decay"] == 0) == names[id(parameter)].endswith(".bias")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4 * 4 + 4


@pytest.mark.parametrize("adapter", ["lsr", "lora"])
def test_products_in_bf16_train_factors_in_fp32(after, adapter, monkeypatch):
    after(adapter, train={"precision": "bf16"})
    computed = set()
    forward = torch.nn.functional.linear

    def linear(x, *others):
        output = forward(x, *others)
        computed.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    run(TRAIN)
    assert torch.bfloat16 in computed
    weights = load_file(artifacts.ADAPTER / adapters.WEIGHTS)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in weights.values())
    assert 0 <= report(artifacts.TRAIN_METRICS)["best_score"] <= 1


@pytest.mark.parametrize(
    ("chosen", "has_gpu", "has_bf16", "missing", "words"),
    [
        ({"precision": "fp16"}, False, False, "", "train.precision: fp16 needs a GPU, and there is none; fp32 and"),
        ({"precision": "bf16"}, True, False, "", "train.precision: this GPU has no bf16; fp32 and fp16 run on it"),
        ({"compile": True}, False, False, "g++", r"train.compile: torch.compile needs g\+\+, which is not installed"),
        ({"compile": True}, True, True, "triton", "train.compile: torch.compile needs triton, which is not installed"),
    ],
)
def test_a_training_that_the_machine_cannot_do_is_refused(at, monkeypatch, chosen, has_gpu, has_bf16, missing, words):
    at(train=chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(arguments.shutil, "which", lambda name: None if name == missing else name)
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match=rf"params.yaml: {words}"):
        run(TRAIN)


def test_a_compiled_step_is_asked_of_the_trainer(at, tmp_path):
    at(train={"compile": True})
    view = params.load(params.TrainView)
    arguments.check_machine(view.train)
    assert arguments.training_arguments(view, 4, tmp_path).torch_compile


def test_a_training_that_diverges_ends_in_one_line(after, monkeypatch):
    after()
    shutil.rmtree(artifacts.ADAPTER)
    usual = Trainer.compute_loss

    def infinite(*args, **options):
        found = usual(*args, **options)
        return found if isinstance(found, tuple) else found * math.inf

    monkeypatch.setattr(Trainer, "compute_loss", infinite)
    with pytest.raises(UserError, match=r"train: the loss is (nan|inf) after \d+ steps: lower the learning rate"):
        run(TRAIN)
    assert not artifacts.ADAPTER.exists()


def test_a_regression_is_scored_by_its_correlations(at):
    at(data="ratings")
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    scores = report(artifacts.EVALUATE_METRICS)
    assert scores["score"] == scores["pearson"]
    assert {"spearman_low", "spearman_high", "loss"} <= scores.keys()
    assert "calibration_error" not in scores
    rows = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    assert {row["actual_group"] for row in rows} == {"0: 0 to 0.4", "9: 3.6 to 4"}


def test_rated_texts_are_compared_in_pairs(at):
    at(data="comparisons")
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert report(artifacts.ADAPTER / "task.json") == {
        "columns": ["sentence1", "sentence1_pair"],
        "labels": ["first", "second"],
        "max_length": 24,
    }
    assert {"accuracy_low", "f1", "calibration_error"} <= report(artifacts.EVALUATE_METRICS).keys()
    ratings = pd.read_csv("ratings.csv")
    rated = dict(zip(ratings["sentence1"], ratings["rating"], strict=True))
    rows = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    for row in rows:
        higher = "first" if rated[row["text"]] > rated[row["text_pair"]] else "second"
        assert row["actual"] == row["actual_group"] == higher
    assert len(rows) > 3
    assert artifacts.EVALUATE_PICTURE.is_file()


def exported(words):
    """Return what the exports say beside the adapter."""
    assert {path.name for path in artifacts.EXPORTS.iterdir()} == {"parity.json", "README.md", *words}
    return report(artifacts.EXPORTS / "parity.json")


def test_without_a_word_nothing_is_exported(after, capsys):
    after()
    run(EVALUATE)
    assert exported([]) == {}
    assert "exports" not in capsys.readouterr().out


def test_the_adapter_says_what_it_reads_and_what_its_head_says(after):
    after()
    assert report(artifacts.ADAPTER / "task.json") == {
        "columns": ["sentence1", "sentence2"],
        "labels": ["not_equivalent", "equivalent"],
        "max_length": 24,
    }


def test_both_forms_are_written_and_compared(at, capsys):
    folder = at(lsr={"learning_rate": 0.1}, evaluate={"export": ["merged", "lora"]})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    differences = exported(["lora", "merged"])
    assert differences.keys() == {"lora", "merged"}
    assert all(value < 1e-5 for value in differences.values())
    shown = capsys.readouterr().out
    assert f"  lora | {differences['lora']:.4g} | artifacts/exports/lora" in shown
    assert "  merged | " in shown

    view = params.load(params.EvaluateView)
    model = adapters.load_adapter(base_of(view), artifacts.ADAPTER, trainable=False)
    expected = logits(model)
    for layer in adapted_layers(model).values():
        layer.adapter("default").scaling = 0.0
    assert (logits(model) - expected).abs().max() > 1e-3  # the update is no small thing that could be lost unseen
    merged = AutoModelForSequenceClassification.from_pretrained("artifacts/exports/merged")
    assert logits(merged) == pytest.approx(expected, abs=1e-5)
    assert merged.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert not any("lsr" in name or "lora" in name for name in merged.state_dict())
    assert AutoTokenizer.from_pretrained("artifacts/exports/merged")("the cat")["input_ids"][0] == 0
    plain = PeftModel.from_pretrained(base_of(view), "artifacts/exports/lora")
    assert logits(plain) == pytest.approx(expected, abs=1e-5)
    config = report(Path("artifacts/exports/lora/adapter_config.json"))
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "tiny-roberta")
    for path in artifacts.EXPORTS.rglob("*.json"):
        assert str(folder) not in path.read_text(), path


def test_one_tokenizer_is_loaded_and_one_set_of_predictions_made(after, monkeypatch):
    after(evaluate={"export": ["merged", "lora"]})
    calls = []
    for module, name in ((base_models, "load_tokenizer"), (inference, "predicted"), (tokens, "load_tokens")):
        usual = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, name=name, usual=usual: calls.append(name) or usual(*given))
    run(EVALUATE)
    assert sorted(calls) == ["load_tokenizer", "load_tokens", "predicted"]


@pytest.mark.parametrize("adapter", ["lora", "full", "head"])
def test_any_adapter_is_exported_merged(after, adapter):
    after(adapter, evaluate={"export": ["merged"]})
    run(EVALUATE)
    assert exported(["merged"])["merged"] < 1e-5
    view = params.load(params.EvaluateView)
    merged = AutoModelForSequenceClassification.from_pretrained("artifacts/exports/merged")
    beside = adapters.load_adapter(base_of(view), artifacts.ADAPTER, trainable=False)
    assert logits(merged) == pytest.approx(logits(beside), abs=1e-5)


def test_a_subtracted_start_is_exported_with_its_regression_head(at):
    at(data="ratings", lsr={"init": "principal"}, evaluate={"export": ["lora", "merged"]})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert all(value < 1e-4 for value in exported(["lora", "merged"]).values())


def test_exports_have_the_same_bytes_every_time_and_leave_with_their_word(after):
    after(evaluate={"export": ["lora", "merged"]})
    run(EVALUATE)
    exported(["lora", "merged"])
    first = digests(artifacts.EXPORTS)
    run(EVALUATE)
    assert digests(artifacts.EXPORTS) == first
    workspace.change(evaluate={"export": []})
    run(EVALUATE)
    assert list(digests(artifacts.EXPORTS)) == ["artifacts/exports/README.md", "artifacts/exports/parity.json"]


def test_an_export_that_is_refused_is_one_line_and_leaves_the_old_one(after):
    after("lora")
    before = digests(artifacts.EXPORTS)
    workspace.change(adapter="lsr", evaluate={"export": ["lora"]})  # by hand, without training again
    with pytest.raises(UserError) as error:
        run(EVALUATE)
    assert str(error.value) == "params.yaml: evaluate.export: lora: the model has no LSR adapter 'default'"
    assert digests(artifacts.EXPORTS) == before


STARTS = [
    {"init": "principal"},
    {"init": "principal", "rank_shape": [2, 2, 1]},
    {"init": "gradient", "examples": 20},
    {"init": "random", "train": "first"},
]


@pytest.mark.parametrize("lsr", STARTS, ids=[f"{s['init']}-{i}" for i, s in enumerate(STARTS)])
def test_every_start_is_chosen_by_a_word_and_trains(at, lsr, monkeypatch):
    monkeypatch.setattr(start_report, "MOST_RANKS_BY_SEARCH", 2)  # each of the 16 is a search of its own
    at(lsr=lsr)
    run(TOKENIZE, FACTORIZE)
    view = params.load(params.TrainView)
    model = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=False)
    assert logits(model) == pytest.approx(logits(base_model(view)), abs=1e-5)
    first = digests(artifacts.INIT) | digests("reports")
    run(FACTORIZE)
    assert digests(artifacts.INIT) | digests("reports") == first
    run(TRAIN, EVALUATE)
    scores = report(artifacts.EVALUATE_METRICS)
    assert scores["merge_difference"] < 1e-4
    assert scores["adapter_trained"] <= scores["adapter_stored"]
    assert (scores["adapter_trained"] < scores["adapter_effective"]) == (lsr.get("train") == "first")


def test_examples_are_read_only_by_a_start_that_looks_at_them(at):
    at(lsr={"init": "gradient"})
    with pytest.raises(UserError, match=r"artifacts/tokens/train.arrow: not found; run python -m stages.tokenize"):
        run(FACTORIZE)


@pytest.mark.parametrize("init", ["random", "principal"])
def test_the_start_says_what_it_captures(at, init):
    at(lsr={"init": init})
    run(FACTORIZE)
    found = report(artifacts.FACTORIZE_METRICS)
    rows = list(csv.DictReader(artifacts.FACTORIZE_LAYERS.open(newline="")))
    assert len(rows) == 4
    assert found["overlap"] == pytest.approx(np.mean([float(row["overlap"]) for row in rows]), abs=1e-5)
    assert (found["overlap"] > 1.5 * found["overlap_random"]) == (init == "principal")
    curve = [float(row["relative_error"]) for row in csv.DictReader(artifacts.FACTORIZE_CURVE.open(newline=""))]
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == pytest.approx(0, abs=1e-6)


def test_the_seed_draws_other_factors_and_another_head(at):
    at(lsr={"init": "random"})
    run(FACTORIZE)
    first = load_file(artifacts.INIT / adapters.WEIGHTS)
    workspace.change(seed=1)
    run(FACTORIZE)
    second = load_file(artifacts.INIT / adapters.WEIGHTS)
    same = {name.rpartition(".")[2] for name in first if torch.equal(first[name], second[name])}
    assert same == {"bias", "factor_B1"}


def test_no_path_of_this_machine_is_in_an_adapter(at):
    folder = at()
    run(FACTORIZE)
    written = (artifacts.INIT / "adapter_config.json").read_text()
    assert str(folder) not in written
    assert json.loads(written)["base_model_name_or_path"] == "tiny-roberta"


def test_saving_a_loaded_adapter_asks_no_hub(after, monkeypatch):
    after()
    view = params.load(params.TrainView)
    written = json.loads((artifacts.INIT / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = "someone/on-the-hub"
    (artifacts.INIT / "adapter_config.json").write_text(json.dumps(written))
    model = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=True)
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *names: asked.append(names))
    model.save_pretrained("saved")
    assert asked == []


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lsr": {"separation_rank": 999}}, ["params.yaml: lsr", "separation_rank must be in [1, 8]", "999"]),
        ({"lsr": {"in_shape": [2, 3]}}, ["in_shape", "such as [6, 4]"]),
        ({"lsr": {"target_modules": ["query", "valeu"]}}, ["no layer is named 'valeu'", "did you mean 'value'"]),
        ({"lsr": {"target_modules": ["word_embeddings"]}}, ["word_embeddings", "cannot be adapted", "Embedding"]),
        (
            {"adapter": "lora", "lora": {"target_modules": ["query", "valu"]}},
            ["params.yaml: lora", "'valu'; did you mean"],
        ),
        (
            {"adapter": "lora", "lora": {"r": 25}},
            ["params.yaml: lora: r: 25 is above 24, the smaller side of", "attention.self.query"],
        ),
    ],
)
def test_a_section_that_does_not_fit_the_model_is_one_line(at, changes, words):
    at(**changes)
    with pytest.raises(UserError) as error:
        run(FACTORIZE)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not Path("artifacts").exists()


@pytest.mark.parametrize("init", ["random"])
@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "its largest entry is 0.0"), (float("nan"), "its largest entry is nan")]
)
def test_a_broken_weight_is_one_line_that_names_the_layer(at, init, value, words):
    folder = at(lsr={"init": init})
    path = folder / "tiny-roberta/model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.1.attention.self.value.weight"].fill_(value)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.attention\.self\.value") as error:
        run(FACTORIZE)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stage_without_the_one_before_says_so(at):
    at()
    with pytest.raises(UserError, match=r"artifacts/init: no adapter here"):
        run(TRAIN)
    run(FACTORIZE)
    with pytest.raises(UserError, match=r"artifacts/tokens/train.arrow: not found"):
        run(TRAIN)


def test_an_adapter_of_another_base_model_is_refused(after):
    folder = after()
    view = params.load(params.EvaluateView)
    wider = workspace.SIZES | {"hidden_size": 32}
    (folder / "tiny-roberta").rename(folder / "narrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "SIZES", wider)
        workspace.save_tiny_roberta(folder / "tiny-roberta")
    with pytest.raises(UserError, match=r"artifacts/adapter: does not fit the base model"):
        adapters.load_adapter(base_model(params.load(params.TrainView)), artifacts.ADAPTER, trainable=False)
    assert view.base_model.head == ("classifier",)


def test_a_model_that_is_not_there_is_one_line(at):
    folder = at()
    (folder / "tiny-roberta").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"pipeline/models.yaml: cannot load tiny-roberta") as error:
        run(FACTORIZE)
    assert "\n" not in str(error.value)
