"""The baselines of a run, and how much better it is, are those of scikit-learn and scipy.

Features are those of plain transformers for each text alone, and what a run has predicted is read from its report.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from pipeline.core import artifacts
from tests import kit, workspace
from tests.kit import table
from tests.pipeline.tasks.references import RESAMPLES, resampled
from tests.references import models, texts
from tests.references.plain import encoded
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run
from tests.stages.shops import LABELS, rows

EXAMPLES = 150
LENGTH = 24  # tokens; some texts have more
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10)
ROUNDED = 2e-3  # of correlations with numbers of three digits, as in the report
FEW = 10  # validation texts of a label, below which labels share a threshold
FOLDER = Path("models/encoder")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with the texts, in which nothing has run."""
    folder = workspace.make(
        tmp_path_factory.mktemp("regression"),
        texts.ROWS,
        model=str(FOLDER),
        adapter="lora",
        tokenize={"max_length": LENGTH},
        train={"epochs": 1, "head_learning_rate": 0.05},
        evaluate={"batch_size": 5, "resamples": RESAMPLES},
    )
    models.save(folder / FOLDER, "bert")
    kit.write(folder / texts.FILE, texts.examples(EXAMPLES))
    kit.write(folder / "data/shops.csv", rows(LABELS))
    kit.write(folder / "data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    return folder


def evaluate_run(**changes):
    """Run all stages with changes, and return the metrics."""
    workspace.change(**changes)
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    return report(artifacts.EVALUATE_METRICS)


@torch.no_grad()
def of_split(split):
    """Return the examples of a split, the mean of the last states of each text alone, and the labels."""
    examples = Dataset.from_file(str(artifacts.tokens(split))).to_pandas()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    encoder = AutoModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    columns = [name for name in ("text", "text_pair") if name in examples]
    means = []
    for read in examples[columns].to_numpy().tolist():
        states = encoder(**encoded(tokenizer, read, LENGTH)).last_hidden_state
        means.append(states[0].double().mean(dim=0).numpy())
    return examples, np.array(means), np.array(examples["label"].tolist())


def best(loss, make, train, validation):
    """Return the estimator, by its strength, with the least loss on validation."""
    fitted = [make_pipeline(StandardScaler(), make(strength)).fit(*train) for strength in STRENGTHS]
    return min(fitted, key=lambda estimator: loss(estimator, *validation))


def log_loss(estimator, features, labels):
    return metrics.log_loss(labels, estimator.predict_proba(features), labels=estimator.classes_)


def loss_of_labels(estimator, features, labels):
    shares = estimator.predict_proba(features)
    return np.mean([metrics.log_loss(labels[:, at], shares[:, at], labels=[0, 1]) for at in range(labels.shape[1])])


def squared_error(estimator, features, labels):
    return metrics.mean_squared_error(labels, estimator.predict(features))


def logistic(strength):
    return LogisticRegression(C=strength, max_iter=1000)


def each_label(strength):
    return OneVsRestClassifier(logistic(strength))


def ridge(strength):
    return Ridge(alpha=1 / strength)


def predicted_classes(train, validation, test):
    return best(log_loss, logistic, train, validation).predict(test)


def predicted_numbers(train, validation, test):
    return best(squared_error, ridge, train, validation).predict(test)


def predicted_labels(train, validation, test):
    """Each label from the threshold with the best F1 on validation, the middle one of ties; few texts share one."""
    fitted = best(loss_of_labels, each_label, train, validation)
    held_out, wanted = validation
    shares = fitted.predict_proba(held_out)
    few = wanted.sum(axis=0) < FEW
    thresholds = np.empty(len(few))
    tried = np.arange(1, 100) / 100
    for labels in (few, *np.eye(len(few), dtype=bool)[~few]):
        if labels.any():
            scored = np.array([f1(wanted[:, labels], shares[:, labels] >= level) for level in tried])
            ties = tried[scored == scored.max()]
            thresholds[labels] = ties[(len(ties) - 1) // 2]
    return (fitted.predict_proba(test) >= thresholds).astype(int)


def f1(actual, predicted):
    return metrics.f1_score(actual.ravel(), predicted.ravel(), zero_division=0)


KINDS = {
    "two": (predicted_classes, "accuracy", metrics.accuracy_score),
    "three": (predicted_classes, "accuracy", metrics.accuracy_score),
    "pairs": (predicted_classes, "matthews_correlation", metrics.matthews_corrcoef),
    "multi_label": (
        predicted_labels,
        "micro_f1",
        lambda actual, given: metrics.f1_score(actual, given, average="micro"),
    ),
    "number": (predicted_numbers, "pearson", lambda actual, given: stats.pearsonr(actual, given).statistic),
}


@pytest.mark.parametrize(
    "labels", [pytest.param(kind, marks=pytest.mark.nightly if kind == "pairs" else ()) for kind in KINDS]
)
def test_the_regression_and_the_differences_are_those_of_scikit_learn_and_scipy(world, monkeypatch, labels):
    monkeypatch.chdir(world)
    scored = evaluate_run(data=labels)
    predict, metric, score = KINDS[labels]
    _, *train = of_split("train")
    _, *validation = of_split("validation")
    _, test, actual = of_split("test")
    regression = predict(train, validation, test)
    assert scored[f"{metric}_regression"] == pytest.approx(score(actual, regression), abs=1e-4)
    assert scored["regression_examples"] == len(train[1])

    names = report(artifacts.ADAPTER / "task.json")["labels"]
    predicted = predicted_in_report(names, actual.ndim)
    difference = score(actual, predicted) - score(actual, regression)
    assert scored[f"{metric}_over_regression"] == pytest.approx(difference, abs=ROUNDED)

    def paired(actual, both):
        first, second = np.split(both.reshape(len(both), -1), 2, axis=1)
        return score(actual, first.reshape(actual.shape)) - score(actual, second.reshape(actual.shape))

    ends = resampled(paired, actual, np.column_stack([predicted, regression]))
    in_report = [scored[f"{metric}_over_regression_{end}"] for end in ("low", "high")]
    assert in_report == pytest.approx(ends, abs=ROUNDED)


def predicted_in_report(names, dimensions):
    """Return what the run has predicted: a number, a class or, of labels that apply, a flag for each."""
    cells = [row["predicted"] for row in table(artifacts.EVALUATE_PREDICTIONS)]
    if names is None:
        return np.array(list(map(float, cells)))
    if dimensions == 1:
        return np.array([names.index(cell) for cell in cells])
    return np.array([[int(name in cell.split("; ")) for name in names] for cell in cells])


def test_the_constant_baseline_is_compared_on_the_same_examples(world, monkeypatch):
    monkeypatch.chdir(world)
    scored = evaluate_run(data="three")
    _, features, actual = of_split("test")
    names = report(artifacts.ADAPTER / "task.json")["labels"]
    predicted = predicted_in_report(names, 1)
    constant = DummyClassifier(strategy="most_frequent").fit(features, actual).predict(features)
    difference = np.mean(predicted == actual) - np.mean(constant == actual)
    assert scored["accuracy_over_baseline"] == pytest.approx(difference, abs=1e-6)
    ends = resampled(
        lambda actual, both: np.mean(both[:, 0] == actual) - np.mean(both[:, 1] == actual),
        actual,
        np.column_stack([predicted, constant]),
    )
    in_report = [scored[f"accuracy_over_baseline_{end}"] for end in ("low", "high")]
    assert in_report == pytest.approx(ends, abs=1e-6)


def test_each_tenant_has_a_regression_of_its_own(world, monkeypatch):
    monkeypatch.chdir(world)
    scored = evaluate_run(data="shops")
    by_split = {split: of_split(split) for split in ("train", "validation", "test")}
    accuracies = []
    differences = []
    report_rows = table(artifacts.EVALUATE_PREDICTIONS)
    right = np.array([row["predicted"] == row["actual"] for row in report_rows])
    for tenant in range(len(LABELS)):
        own = {}
        for split, (examples, features, labels) in by_split.items():
            rows_of_tenant = examples["tenant"] == tenant
            own[split] = features[rows_of_tenant], labels[rows_of_tenant]
        test, actual = own["test"]
        accuracy = np.mean(predicted_classes(own["train"], own["validation"], test) == actual)
        accuracies.append(accuracy)
        of_tenant = (by_split["test"][0]["tenant"] == tenant).to_numpy()
        differences.append(right[of_tenant].mean() - accuracy)
    assert scored["accuracy_regression"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert scored["accuracy_over_regression"] == pytest.approx(np.mean(differences), abs=1e-6)
    ends = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert scored["accuracy_over_regression_low"] <= ends.low + 1e-6
    assert scored["accuracy_over_regression_high"] >= ends.high - 1e-6


def test_fewer_training_examples_or_no_regression_leave_the_other_figures_as_they_are(world, monkeypatch):
    monkeypatch.chdir(world)
    usual = evaluate_run(data="two")
    workspace.change(evaluate={"regression_baseline": 20})
    run(EVALUATE)
    fewer = report(artifacts.EVALUATE_METRICS)
    workspace.change(evaluate={"regression_baseline": "none"})
    run(EVALUATE)
    without = report(artifacts.EVALUATE_METRICS)
    workspace.change(evaluate={"regression_baseline": 2048})
    of_regression = {name for name in usual if "regression" in name}
    assert (usual["regression_examples"], fewer["regression_examples"]) == (len(of_split("train")[1]), 20)
    assert {name: value for name, value in usual.items() if name not in of_regression} == without
    assert without == {name: value for name, value in fewer.items() if name not in of_regression}
    assert len(of_regression) == 1 + 2 * 4
