"""A tenant without labels, or with a few: against plain transformers, PEFT and scikit-learn."""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main
from lsr.serve.fitting import MULTI_LABEL, NUMBERS, assign_folds, choose_strength, fit_rows
from lsr.serve.group_names import name_group
from lsr.serve.groups import find_groups, make_member
from lsr.serve.labeled import Example, fit_tenant, number_texts
from lsr.serve.passes import BatchRunner
from lsr.tuner.files import TASK
from lsr_onnx import examples
from lsr_onnx.errors import InputError
from tests import architectures, workspace
from tests.kit import refused, write

TENANTS = {"acme": ["bad", "good"], "bolt": None, "corp": ["good", "bad"], "dora": ["a", "b", "c"], "eve": None}
WIDTHS = [len(labels or "1") for labels in TENANTS.values()]
HEADS = {"bert": "classifier", "roberta": "classifier", "gpt2": "score", "llama": "score"}
TARGETS = {"bert": ["query"], "roberta": ["query"], "gpt2": ["c_attn"], "llama": ["q_proj"]}
TEXTS = [text for first, second, _ in workspace.sentences(30) for text in (first, second)]


@pytest.fixture(scope="module", params=HEADS)
def plain(request, tmp_path_factory):
    return save_tenants(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_tenants(tmp_path_factory.mktemp("bert"), "bert")


def save_tenants(folder, kind):
    """Save a base model and the adapter of tenants; return the folder, the plain model of PEFT and the tokenizer."""
    architectures.save(folder / "base", kind)
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=sum(WIDTHS))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    base.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    config = LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS[kind], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if HEADS[kind] in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    task_info = {"kind": "classes", "columns": ["text"], "labels": None, "tenants": TENANTS, "max_length": 28}
    write(folder / "adapter" / TASK, json.dumps(task_info))
    return folder, model, tokenizer


def logits_alone(model, tokenizer, texts):
    """The outputs of a model for each text alone, by tenant."""
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    parts = torch.cat(rows).split(WIDTHS, dim=1)
    return dict(zip(TENANTS, parts, strict=True))


def states_alone(model, tokenizer, texts):
    """What the last linear layer of the head reads of each text alone, at its last token if it reads all."""
    layers = [module for name, module in model.named_modules() if "modules_to_save.default" in name]
    last = [module for module in layers if isinstance(module, torch.nn.Linear)][-1]
    states = []
    hook = last.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    logits_alone(model, tokenizer, texts)
    hook.remove()
    return torch.stack([state.reshape(-1, state.shape[-1])[-1] for state in states]).double().numpy()


def passes_of(folder):
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    return BatchRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 28, 1)


def ask(bank, tokenizer, name, text):
    with torch.no_grad():
        logits = bank(**tokenizer(text, return_tensors="pt"), adapter_names=[name]).logits
    [answer] = bank.answers(logits, [name])
    return answer


@pytest.mark.parametrize("precision", ["float32", "8bit"])
def test_a_tenant_without_labels_has_the_mean_of_those_that_are_asked_the_same(plain, precision):
    folder, model, tokenizer = plain
    expected = logits_alone(model, tokenizer, TEXTS[:6])
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"), precision=precision)
    assert find_groups(bank) == {
        frozenset(("bad", "good")): {("bad", "good"): ["acme"], ("good", "bad"): ["corp"]},
        frozenset(): {None: ["bolt", "eve"]},
        frozenset("abc"): {("a", "b", "c"): ["dora"]},
    }
    bank.add("later", make_member(bank, "later", ("good", "bad")))
    bank.add("number", make_member(bank, "number", None))
    bank.add("single", make_member(bank, "single", ("c", "a", "b")))
    in_order = [expected["acme"][:, [1, 0]], expected["corp"]]
    means = {
        "later": torch.stack(in_order).mean(dim=0),
        "number": (expected["bolt"] + expected["eve"]) / 2,
        "single": expected["dora"][:, [2, 0, 1]],
    }
    near = {"rtol": 1e-4, "atol": 1e-5} if precision == "float32" else {"rtol": 0.1, "atol": 0.1}
    for name, mean in means.items():
        for text, row in zip(TEXTS, mean, strict=False):
            answer = ask(bank, tokenizer, name, text)
            assert_close(answer.logits, row, **near)
    assert ask(bank, tokenizer, "later", TEXTS[0]).labels == ("good", "bad")


@pytest.mark.parametrize("count", [2, 3])
def test_a_fit_from_zero_is_the_logistic_regression_of_scikit_learn(count):
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 7))
    targets = np.concatenate([np.arange(count), random.integers(count, size=40 - count)])
    strength = 0.01
    rows = fit_rows(features, targets, np.zeros((count, 8)), strength)
    inputs = standardize(features)
    penalty = strength * len(targets) / (2 if count == 2 else 1)  # of two classes it has one vector
    expected = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(inputs, targets)
    logits = np.column_stack([features, np.ones(40)]) @ rows.T
    assert_close(_shares(logits), expected.predict_proba(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_a_fit_of_a_layer_without_a_bias_is_a_regression_without_intercept(count):
    random = np.random.default_rng(0)
    features = 3 + random.normal(size=(40, 7))
    targets = np.concatenate([np.arange(count), random.integers(count, size=40 - count)])
    inputs = features / np.sqrt((features**2).sum(axis=1).mean())
    penalty = 0.4 / (2 if count == 2 else 1)  # of two classes it has one vector
    expected = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(inputs, targets)
    rows = fit_rows(features, targets, np.zeros((count, 7)), 0.01)
    assert_close(_shares(features @ rows.T), expected.predict_proba(inputs), rtol=1e-4, atol=1e-5)
    numbers = 100 * random.normal(size=40)
    ridge = Ridge(alpha=0.4, fit_intercept=False).fit(inputs, numbers)
    [row] = fit_rows(features, numbers, np.zeros((1, 7)), 0.01, NUMBERS)
    assert_close(features @ row, ridge.predict(inputs), rtol=1e-8, atol=1e-8)


def test_rows_of_any_head_answer_as_they_were_scored(plain):
    """Heads of gpt2 and llama have no bias, so a fit with an intercept would be far from what they answer."""
    folder, model, tokenizer = plain
    passes = passes_of(folder)
    states = states_alone(model, tokenizer, TEXTS)
    numbers = 50 + 10 * (states - states.mean(axis=0))[:, 0] / states[:, 0].std()
    fit = fit_tenant(passes, "later", [Example(text, number) for text, number in zip(TEXTS, numbers, strict=True)])
    assert fit.chosen.is_better
    passes.bank.add("later", fit.contents)
    answered = np.array([float(ask(passes.bank, tokenizer, "later", text).logits[0]) for text in TEXTS])
    error = np.sqrt(((answered - numbers) ** 2).mean())
    assert error < max(fit.chosen.interval[1], 0.1)


@pytest.mark.parametrize("texts", [40, 6])  # more and fewer than inputs
def test_a_fit_of_numbers_from_zero_is_the_ridge_regression_of_scikit_learn(texts):
    random = np.random.default_rng(2)
    features = 5 + random.normal(size=(texts, 7))
    targets = 100 * random.normal(size=texts)
    strength = 0.01
    rows = fit_rows(features, targets, np.zeros((1, 8)), strength, NUMBERS)
    inputs = standardize(features)
    expected = Ridge(alpha=strength * texts, fit_intercept=False).fit(inputs, targets)
    numbers = np.column_stack([features, np.ones(texts)]) @ rows[0]
    assert_close(numbers, expected.predict(inputs), rtol=1e-8, atol=1e-8)


def test_a_fit_of_several_labels_from_zero_is_a_logistic_regression_of_scikit_learn_for_each():
    random = np.random.default_rng(3)
    features = random.normal(size=(40, 7))
    targets = (random.random((40, 3)) < 0.4).astype(float)
    strength = 0.02
    rows = fit_rows(features, targets, np.zeros((3, 8)), strength, MULTI_LABEL)
    inputs = standardize(features)
    logits = np.column_stack([features, np.ones(40)]) @ rows.T
    for label in range(3):
        regression = LogisticRegression(C=1 / (strength * 40), fit_intercept=False, tol=1e-10, max_iter=10_000)
        expected = regression.fit(inputs, targets[:, label]).decision_function(inputs)
        assert_close(logits[:, label], expected, rtol=1e-4, atol=1e-5)


def test_scores_by_cross_validation_are_those_of_scikit_learn():
    random = np.random.default_rng(4)
    features = random.normal(size=(50, 4))
    targets = features @ [3.0, 0, -2, 1] + random.normal(size=50)
    chosen = choose_strength(features, targets, np.zeros((1, 5)), NUMBERS)
    assert chosen.is_better
    folds = np.empty(50, int)
    folds[np.argsort(targets)] = np.arange(50) % 10
    squares = np.empty(50)
    for fold in range(10):
        known, unseen = features[folds != fold], features[folds == fold]
        center = known.mean(axis=0)
        unit = np.sqrt(((known - center) ** 2).sum(axis=1).mean())
        inputs = np.column_stack([(known - center) / unit, np.ones(len(known))])
        ridge = Ridge(alpha=chosen.strength * len(known), fit_intercept=False).fit(inputs, targets[folds != fold])
        numbers = ridge.predict(np.column_stack([(unseen - center) / unit, np.ones(len(unseen))]))
        squares[folds == fold] = (numbers - targets[folds == fold]) ** 2
    assert chosen.score == pytest.approx(np.sqrt(squares.mean()))
    resampled = stats.bootstrap((squares,), lambda sample, axis: np.sqrt(sample.mean(axis=axis)), method="percentile")
    assert chosen.interval == pytest.approx(tuple(resampled.confidence_interval), rel=0.1)


def repeat(distinct, classes):
    """Twice the same texts, whose labels are drawn, and the number of each text."""
    random = np.random.default_rng(distinct)
    features = np.tile(random.normal(size=(distinct, 16)), (2, 1))
    targets = np.tile(random.permutation(np.arange(distinct) % classes), 2)
    return features, targets, np.tile(np.arange(distinct), 2)


def test_copies_of_a_text_are_in_one_fold_and_count_once():
    features, targets, texts = repeat(15, 2)
    chosen = choose_strength(features, targets, np.zeros((2, 17)), texts=texts)
    folds = assign_folds(targets, texts)
    right = []
    for fold in range(10):
        known, unseen = folds != fold, folds == fold
        assert not {*texts[known]} & {*texts[unseen]}
        rows = fit_rows(features[known], targets[known], np.zeros((2, 17)), chosen.strength)
        logits = np.column_stack([features[unseen], np.ones(unseen.sum())]) @ rows.T
        right += [*(logits.argmax(axis=1) == targets[unseen])]
    assert chosen.score == np.mean(right)
    interval = stats.binomtest(sum(right) // 2, 15).proportion_ci(0.95, "wilson")
    assert chosen.interval == (interval.low, interval.high)


def test_a_text_with_two_numbers_counts_once_by_the_mean_of_its_squares():
    numbers, targets, texts = np.array([[1.0], [1], [2]]), np.array([0.0, 2, 5]), np.array([0, 0, 1])
    assert NUMBERS.score(numbers, targets, texts) == pytest.approx(np.sqrt((1 + 9) / 2))


def test_labels_by_chance_are_not_better_because_each_text_occurs_twice():
    better = {True: 0, False: 0}
    for distinct in range(12, 24):
        features, targets, texts = repeat(distinct, 2)
        start = np.zeros((2, 17))
        again = choose_strength(features, targets, start, texts=texts)
        once = choose_strength(features[:distinct], targets[:distinct], start)
        better[True] += again.is_better
        better[False] += once.is_better
    assert better[True] <= better[False] + 1
    assert better[True] <= 2


def test_f1_of_several_labels_is_that_of_scikit_learn_with_the_percentiles_of_a_bootstrap():
    random = np.random.default_rng(5)
    logits = random.normal(size=(80, 3))
    targets = (logits + random.normal(size=(80, 3)) > 0.3).astype(float)
    predicted = logits >= 0
    assert MULTI_LABEL.score(logits, targets) == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert MULTI_LABEL.score(-np.ones((2, 3)), np.zeros((2, 3))) == 0  # nothing to find, and nothing found

    def score(numbers):
        return f1_score(targets[numbers], predicted[numbers], average="micro")

    draws = [score(random.integers(80, size=80)) for _ in range(500)]
    assert MULTI_LABEL.interval(logits, targets) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def standardize(features):
    centered = features - features.mean(axis=0)
    return np.column_stack([centered / np.sqrt((centered**2).sum(axis=1).mean()), np.ones(len(features))])


def _shares(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_fit_minimizes_log_loss_and_the_squared_deviation_from_its_start():
    random = np.random.default_rng(1)
    features, start = 3 + random.normal(size=(30, 5)), random.normal(size=(3, 6))
    targets = np.arange(30) % 3
    rows = fit_rows(features, targets, start, 0.03)
    inputs = torch.from_numpy(standardize(features))
    offsets = torch.from_numpy(np.column_stack([features, np.ones(30)]) @ start.T)
    moved = torch.from_numpy(np.column_stack([features, np.ones(30)]) @ (rows - start).T)
    deviation = torch.linalg.lstsq(inputs, moved).solution.T.clone().requires_grad_()
    assert_close(inputs @ deviation.T, moved)
    loss = torch.nn.functional.cross_entropy(offsets + inputs @ deviation.T, torch.from_numpy(targets))
    (loss + 0.03 * deviation.square().sum() / 2).backward()
    assert deviation.grad.abs().max() < 1e-6
    assert_close(fit_rows(features, targets, start, 1e9), start, rtol=1e-6, atol=1e-6)


def test_a_few_labels_teach_a_question_that_differs_and_leave_a_group_that_is_right(plain):
    folder, model, tokenizer = plain
    passes = passes_of(folder)
    states = states_alone(model, tokenizer, TEXTS)
    centered = states - states.mean(axis=0)
    first_direction = np.linalg.svd(centered, full_matrices=False)[2][0]
    places = centered @ first_direction
    group = logits_of_group(model, tokenizer)
    places -= np.median(places)
    places *= -np.sign(np.corrcoef(places, group[:, 1] - group[:, 0])[0, 1])  # what the group would not answer
    is_clear = np.abs(places) > np.quantile(np.abs(places), 0.3)
    labels = ("bad", "good")
    texts = [text for text, clear in zip(TEXTS, is_clear, strict=True) if clear]
    answers = [labels[int(place > 0)] for place in places[is_clear]]
    states = states[is_clear]
    examples = [Example(text, answer) for text, answer in zip(texts, answers, strict=True)]
    fit = fit_tenant(passes, "later", examples)
    assert fit.chosen.is_better
    assert fit.chosen.score > 0.7 > fit.group_score
    hits = round(fit.chosen.score * len(texts))
    interval = stats.binomtest(hits, len(texts)).proportion_ci(0.95, "wilson")
    assert fit.chosen.interval == (interval.low, interval.high)
    passes.bank.add("later", fit.contents)
    weight = next(value for key, value in fit.contents.heads.items() if key.endswith(".weight"))
    bias = next((value for key, value in fit.contents.heads.items() if key.endswith(".bias")), torch.zeros(2))
    right = 0
    for text, state, answer in zip(texts, states, answers, strict=True):
        expected = torch.from_numpy(state).float() @ weight.T + bias
        answered = ask(passes.bank, tokenizer, "later", text)
        assert_close(answered.logits, expected, rtol=1e-3, atol=1e-3)
        right += answered.labels[int(expected.argmax())] == answer
    assert right / len(texts) > 0.7
    passes.bank.remove("later")
    random = np.random.default_rng(5)
    drawn = [labels[int(random.random() < share)] for share in _shares(group)[:, 1]]
    kept = fit_tenant(passes, "alike", [Example(text, answer) for text, answer in zip(TEXTS, drawn, strict=True)])
    assert not kept.chosen.is_better
    for key, value in make_member(passes.bank, "alike", labels).heads.items():
        assert_close(kept.contents.heads[key], value)


def logits_of_group(model, tokenizer):
    """What those who are asked for bad and good answer, on average."""
    each = logits_alone(model, tokenizer, TEXTS)
    return ((each["acme"] + each["corp"][:, [1, 0]]) / 2).double().numpy()


def run(*words, code=0):
    assert main([str(word) for word in words]) == code


def save_examples(path, texts, answers):
    pd.DataFrame({"text": texts, "label": answers}).to_csv(path, index=False)


def test_the_command_adds_tenants_without_labels_and_with_a_few(plain, tmp_path, capsys):
    folder, model, tokenizer = plain
    start = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    start.save(tmp_path / "bank")
    command = ("bank", "--from", tmp_path / "bank", "-o", tmp_path / "out", "--base", folder / "base", "--force")
    run(*command, "--add", "later", "--add", "other", "--labels", "good,bad")
    assert "2 tenants added with the rows of their group, of 2 tenants" in capsys.readouterr().out
    expected = logits_alone(model, tokenizer, TEXTS[:3])
    mean = (expected["acme"][:, [1, 0]] + expected["corp"]) / 2
    bank = AdapterBank.load(str(folder / "base"), tmp_path / "out")
    assert bank.names == [*TENANTS, "later", "other"]
    for text, row in zip(TEXTS, mean, strict=False):
        assert_close(ask(bank, tokenizer, "other", text).logits, row, rtol=1e-4, atol=1e-5)
    lengths = [len(text) > np.median([*map(len, TEXTS)]) for text in TEXTS]
    save_examples(tmp_path / "few.csv", TEXTS, ["good" if is_long else "bad" for is_long in lengths])
    capsys.readouterr()
    few = tmp_path / "few.csv"
    run(*command, "--fit", f"later={few}", "--fit", f"other={few}")
    printed = capsys.readouterr().out
    assert "later: 60 texts, accuracy by cross-validation " in printed
    assert "other: 60 texts, accuracy by cross-validation " in printed
    assert AdapterBank.load(str(folder / "base"), tmp_path / "out").names == [*TENANTS, "later", "other"]


def test_a_tenant_of_the_bank_keeps_its_rows_where_a_fit_is_not_better(bert, tmp_path, capsys):
    folder, model, tokenizer = bert
    each = logits_alone(model, tokenizer, TEXTS)
    chances_of_group = each["corp"][:, [1, 0]].softmax(dim=1)[:, 1].tolist()
    random = np.random.default_rng(5)
    save_examples(
        tmp_path / "few.csv", TEXTS, ["good" if random.random() < chance else "bad" for chance in chances_of_group]
    )
    words = ("--base", folder / "base", "--fit", f"acme={tmp_path / 'few.csv'}")
    run("bank", "--from", folder / "adapter", "-o", tmp_path / "out", *words)
    assert "not better, so its rows in the bank stay" in capsys.readouterr().out
    bank = AdapterBank.load(str(folder / "base"), tmp_path / "out")
    for text, row in zip(TEXTS[:6], each["acme"], strict=False):
        assert_close(ask(bank, tokenizer, "acme", text).logits, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [None, ("good", "bad")])
def test_a_tenant_of_the_bank_keeps_rows_that_are_better_than_a_fit_that_beats_the_group(bert, labels):
    folder, model, tokenizer = bert
    passes = passes_of(folder)
    bank = passes.bank
    states = states_alone(model, tokenizer, TEXTS)
    center = states.mean(axis=0)
    direction = np.linalg.svd(states - center, full_matrices=False)[2][1]
    places = (states - center) @ direction
    answers = [("bad", "good")[int(place > 0)] for place in places]
    few = [Example(text, answer) for text, answer in zip(TEXTS, answers, strict=True)][:20]
    weight = torch.from_numpy(np.stack([-direction, direction]) * 5 / np.abs(places).mean()).float()
    rows = {"weight": weight, "bias": -weight @ torch.from_numpy(center).float()}
    acme = bank.contents("acme")
    turned = {key: rows[key.rpartition(".")[2]] for key in acme.heads}
    bank.add("acme", replace(acme, heads=turned), replace=True)
    bank.add("corp", replace(bank.contents("corp"), heads=turned), replace=True)  # good and bad: it answers the reverse
    fit = fit_tenant(passes, "acme", few, labels)
    assert (fit.group_score, fit.present_score) == (0, 1)
    assert not fit.chosen.is_better
    bank.remove("acme")
    assert fit_tenant(passes, "acme", few, labels or ("bad", "good")).chosen.is_better  # than the group
    again = fit_tenant(passes, "corp", few, labels)
    assert again.present_score == 0
    assert again.chosen.is_better


def test_a_fit_beats_rows_of_the_bank_by_more_than_the_standard_error_of_the_loss():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 4))
    targets = (features[:, 0] + random.normal(size=60) > 0).astype(int)
    start = np.zeros((2, 5))
    found = set()
    for scale in np.linspace(0, 3, 30):
        present = np.zeros((2, 5))
        present[1, 0] = scale
        chosen = choose_strength(features, targets, start, present=present)
        folds = assign_folds(targets)
        losses = np.empty(60)
        for fold in range(10):
            unseen = folds == fold
            rows = fit_rows(features[~unseen], targets[~unseen], start, chosen.strength)
            shares = _shares(np.column_stack([features[unseen], np.ones(unseen.sum())]) @ rows.T)
            losses[unseen] = -np.log(shares[np.arange(unseen.sum()), targets[unseen]])
        of_present = -np.log(_shares(features @ present[:, :-1].T)[np.arange(60), targets])
        gain = of_present - losses
        assert chosen.is_better == (gain.mean() > gain.std(ddof=1) / np.sqrt(60))
        found.add(chosen.is_better)
    assert found == {True, False}


def test_long_texts_are_truncated_and_counted_and_contradictory_ones_too(bert, tmp_path, capsys):
    folder, *_ = bert
    texts = ["cat " * 200, "dog " * 200, "cat dog " * 100, "dog cat " * 100] * 50
    save_examples(tmp_path / "long.csv", texts, ["bad", "good", "bad", "good", "good", "good", "bad", "good"] * 25)
    words = ("--base", folder / "base", "--fit", f"later={tmp_path / 'long.csv'}")
    run("bank", "--from", folder / "adapter", "-o", tmp_path / "out", *words)
    assert "later: 200 texts, 1 of them with different labels, 200 truncated, accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--labels", "a,b"), "--labels: has no effect without --add or --fit"),
        (("--add", "acme", "--labels", "bad,good"), "acme"),
        (("--add", "later", "--labels", "bad,,good"), "--labels: needed: names, separated by commas"),
        (("--add", "later", "--labels", "bad"), "'bad': only some of those of other tenants, bad, good; name all of"),
        (("--fit", "later"), "--fit: needed: NAME=FILE.csv, got 'later'"),
        (("--fit", "later=there/is/none.csv"), "there/is/none.csv: "),
        (
            ("--fit", "later={folder}/header.csv"),
            "header.csv: needed: at least 4 different texts, of two different labels; got 0 of 0",
        ),
        (
            ("--fit", "later={folder}/columns.csv"),
            "columns.csv: no column 'label'; needed: text, label",
        ),
        (("--fit", "later={folder}/ragged.csv"), "ragged.csv: line 3: needed: 2 cells, as in the header"),
        (("--fit", "later={folder}/empty.csv"), "empty.csv: line 2: has no text or no label"),
        (("--fit", "bolt={folder}/few.csv"), "label 'bad': needed: a number from -1e+30 to 1e+30"),
        (("--fit", "acme={folder}/other.csv"), "label 'Bad': is not one of 'bad, good'"),
        (("--fit", "later={folder}/other.csv"), "no tenant of the bank has 'Bad, Good'; did you mean bad, good?"),
        (
            ("--fit", "later={folder}/few.csv", "--labels", "bad,worse"),
            "no tenant of the bank has 'bad, worse'",
        ),
        (
            ("--fit", "later={folder}/alike.csv"),
            "alike.csv: needed: at least 4 different texts, of two different labels",
        ),
        (
            ("--fit", "later={folder}/again.csv"),
            "again.csv: needed: at least 4 different texts, of two different labels",
        ),
        (("--fit", "later={folder}/latin.csv"), "latin.csv: is not UTF-8; save the file as CSV in UTF-8"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_nothing_is_written(bert, tmp_path, capsys, words, line):
    folder, *_ = bert
    files = {
        "header.csv": b"text,label\n",
        "columns.csv": b"text,x\na,b\n",
        "ragged.csv": b"text,label\na,bad\nb\n",
        "empty.csv": b"text,label\n ,bad\n",
        "few.csv": b"text,label\na,bad\nb,good\nc,bad\nd,good\n",
        "other.csv": b"text,label\na,Bad\nb,Good\nc,Bad\nd,Good\n",
        "alike.csv": b"text,label\na,bad\nb,bad\nc,bad\nd,bad\n",
        "again.csv": b"text,label\na cat,bad\nA  cat,good\nb,bad\nc,good\n",
        "latin.csv": b"text,label\n\xe9,bad\n",
    }
    for name, content in files.items():
        write(tmp_path / name, content)
    command = ("bank", "--from", folder / "adapter", "-o", tmp_path / "out", "--base", folder / "base")
    run(*command, *(word.format(folder=tmp_path) for word in words), code=2)
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


BAD = [
    (("bad", "bad"), "labels: 'bad, bad': each must be given once"),
    (("Bad", "Good"), "did you mean bad, good?"),
    (("good", "GOOD", "bad"), "labels: no tenant of the bank has 'good, GOOD, bad'"),
    (("bad",), "labels: 'bad': only some of those of other tenants, bad, good; name all of them"),
    (("c", "a"), "labels: 'c, a': only some of those of other tenants, a, b, c; name all of them"),
    (("x", "y"), "there are: bad, good; a number; a, b, c"),
]


def test_texts_that_a_template_makes_are_read_from_a_column_of_its_name_and_from_no_other():
    columns = ["{title}. {text}"]
    read = partial(examples.parse_lines, columns=columns, where="few.csv", most=9)
    assert read(["{title}. {text},label", "Cats. They rest.,good"]) == [("Cats. They rest.", "good")]
    says = "few.csv: no column '{title}. {text}'; needed: {title}. {text}, label; columns: title, text, label"
    refused(read, ["title,text,label", "Cats,They rest.,good"], kind=InputError, says=says)


@pytest.mark.parametrize(("labels", "line"), BAD)
def test_labels_that_no_tenant_has_are_refused_in_a_line(bert, labels, line):
    folder, *_ = bert
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    with pytest.raises(InputError) as error:
        make_member(bank, "later", labels)
    assert line in str(error.value)


def test_tenants_that_differ_in_more_than_their_rows_are_not_in_the_mean(bert, tmp_path):
    """A tenant with an update of its own, and one whose labels have no names, count for no group."""
    folder, model, tokenizer = bert
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    rows = bank.contents("acme")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=2)
    own = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False))
    own.save_pretrained(str(tmp_path / "own"), save_embedding_layers=False)
    bank.add("own", tmp_path / "own", task_info={"labels": ["bad", "good"]})
    bank.add("unnamed", rows, task_info={})
    bank.add("later", make_member(bank, "later", ("good", "bad")))
    bank.add("number", make_member(bank, "number", None))
    expected = logits_alone(model, tokenizer, TEXTS[:3])
    mean = (expected["acme"][:, [1, 0]] + expected["corp"]) / 2
    of_numbers = (expected["bolt"] + expected["eve"]) / 2
    for text, row, number in zip(TEXTS, mean, of_numbers, strict=False):
        assert_close(ask(bank, tokenizer, "later", text).logits, row, rtol=1e-4, atol=1e-5)
        assert_close(ask(bank, tokenizer, "number", text).logits, number, rtol=1e-4, atol=1e-5)


def test_a_group_with_rows_of_its_own_answers_by_them_also_without_tenants(bert):
    folder, model, tokenizer = bert
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    bank.add_groups({name_group(("bad", "good")): bank.contents("corp"), name_group(None): bank.contents("eve")})
    expected = logits_alone(model, tokenizer, TEXTS[:3])
    for names in (["acme", "corp", "bolt", "eve"], []):
        bank.add("later", make_member(bank, "later", ("bad", "good")), replace=True)
        bank.add("number", make_member(bank, "number", None), replace=True)
        for text, row, number in zip(TEXTS, expected["corp"][:, [1, 0]], expected["eve"], strict=False):
            assert_close(ask(bank, tokenizer, "later", text).logits, row, rtol=1e-4, atol=1e-5)
            assert_close(ask(bank, tokenizer, "number", text).logits, number, rtol=1e-4, atol=1e-5)
        for name in names:
            bank.remove(name)


def test_a_multi_label_group_answers_with_all_labels_above_one_half_and_is_fitted_label_by_label(bert):
    folder, *_ = bert
    passes = passes_of(folder)
    bank = passes.bank
    task_info = {"labels": ["x", "y", "z"], "thresholds": [0.1, 0.2, 0.3], "columns": ["text"], "max_length": 28}
    bank.add("tags", bank.contents("dora"), task_info=task_info)
    member = make_member(bank, "later", ("z", "x", "y"))
    assert member.task["thresholds"] == [0.5] * 3
    examples = [Example(text, ("x", "y")[: number % 3]) for number, text in enumerate(TEXTS)]
    assert fit_tenant(passes, "tags", examples).metric == "f1"
    of_file = [Example(text, ",".join(("x", "y")[: number % 3])) for number, text in enumerate(TEXTS)]
    written = fit_tenant(passes, "tags", of_file)
    assert written.chosen == fit_tenant(passes, "tags", examples).chosen
    bank.add("classes", bank.contents("dora"), task_info={**task_info, "thresholds": None})
    with pytest.raises(InputError, match="some tenants with these labels are multi-label, and others are not"):
        make_member(bank, "later", ("x", "y", "z"))


def test_numbers_that_differ_from_the_group_are_fitted_and_texts_with_two_labels_are_counted(bert):
    folder, model, tokenizer = bert
    passes = passes_of(folder)
    states = states_alone(model, tokenizer, TEXTS)
    numbers = 50 + 10 * (states - states.mean(axis=0))[:, 0] / states[:, 0].std()
    examples = [Example(text, f"{number}") for text, number in zip(TEXTS, numbers, strict=True)]
    fit = fit_tenant(passes, "later", examples)
    each = logits_alone(model, tokenizer, TEXTS)
    group = ((each["bolt"] + each["eve"]) / 2).double().numpy()[:, 0]
    assert fit.metric == "rmse"
    assert fit.group_score == pytest.approx(np.sqrt(((group - numbers) ** 2).mean()), rel=1e-4)
    assert fit.chosen.is_better
    assert fit.chosen.score < 2  # of numbers that vary by 10
    passes.bank.add("later", fit.contents)
    answered = [float(ask(passes.bank, tokenizer, "later", text).logits[0]) for text in TEXTS[:10]]
    assert answered == pytest.approx(numbers[:10], abs=3)
    assert fit.contradictory == 0
    twice = [*examples, Example(TEXTS[0], 1.5), Example(TEXTS[1], 2.5), Example(TEXTS[2], examples[2].label)]
    assert fit_tenant(passes, "later", twice).contradictory == 2
    spelled = [Example(text, 0) for text in ("a cat", "b", " A  cat", ["a", "cat"], ["A", "cat "])]
    assert number_texts(spelled).tolist() == [0, 1, 0, 2, 2]


@pytest.mark.nightly
def test_a_tenant_is_added_to_ten_thousand_in_a_second(bert):
    folder, model, tokenizer = bert
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    acme = bank.contents("acme")
    bank.add_all({f"tenant-{number}": acme for number in range(10_000)})
    begin = time.perf_counter()
    bank.add("later", make_member(bank, "later", ("good", "bad")))
    assert time.perf_counter() - begin < 1
    expected = logits_alone(model, tokenizer, TEXTS[:1])
    [mean] = (10_001 * expected["acme"][:, [1, 0]] + expected["corp"]) / 10_002
    assert_close(ask(bank, tokenizer, "later", TEXTS[0]).logits, mean, rtol=1e-4, atol=1e-5)
