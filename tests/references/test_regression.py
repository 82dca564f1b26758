"""The baselines of a run, and how much better it is, are those of scikit-learn and scipy.

Features are those of plain transformers for each text alone, and what a run has predicted is read from its report.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import special, stats
from sklearn import metrics
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from lsr.serve.bank import AdapterBank
from pipeline import regression
from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import kit, workspace
from tests.kit import refused, said, table
from tests.pipeline.tasks.references import RESAMPLES, resampled
from tests.references import models, plain, texts
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run
from tests.stages.shops import LABELS, rows

EXAMPLES = 150
LENGTH = 24  # tokens; some texts have more
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10)
ROUNDED = 2e-3  # of correlations with numbers of three digits, as in the report
# Of probabilities. The tanh before BERT's head is nearly 1; and how near scikit-learn comes to the optimum depends on
# the last bits of the features, which differ between processors: probabilities differed by .002 on one of them.
CLOSE = {"bert": 0.02, "roberta": 5e-3, "gpt2": 5e-3}
FEW = 10  # validation texts of a label, below which labels share a threshold
FOLDER = Path("models/encoder")
PLAIN = {"adapter": "regression", "train": {"head_learning_rate": 0.002, "epochs": 2}}


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


def mean_of_states():
    """Return a function from the tokens of a text to the mean of its last states."""
    encoder = AutoModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return lambda tokens: encoder(**tokens).last_hidden_state.double().mean(dim=1)


READ = {  # from a model and the tokens of a text to what the last layer of its head reads
    "bert": lambda model, tokens: model.bert(**tokens).pooler_output,
    "roberta": lambda model, tokens: model.classifier.dense(model.roberta(**tokens).last_hidden_state[:, 0]).tanh(),
    "gpt2": lambda model, tokens: model.transformer(**tokens).last_hidden_state[:, -1],
}


def read_by_head(architecture, outputs):
    """Return a function from the tokens of a text to what the head's last layer reads, before any training."""
    model = plain.base_model(FOLDER.with_name(architecture), num_labels=outputs)
    plain.load_head(model, artifacts.INIT)
    return lambda tokens: READ[architecture](model, tokens)


@torch.no_grad()
def of_split(split, features, folder=FOLDER):
    """Return the examples of a split, the features of each text alone, and the labels."""
    examples = Dataset.from_file(str(artifacts.tokens(split))).to_pandas()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = [name for name in ("text", "text_pair") if name in examples]
    rows = []
    for read in examples[columns].to_numpy().tolist():
        tokens = plain.encoded(tokenizer, read, LENGTH)
        rows.append(features(tokens)[0].numpy())
    return examples, np.array(rows), np.array(examples["label"].tolist())


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


def micro_f1(actual, predicted):
    return metrics.f1_score(actual, predicted, average="micro")


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
    features = mean_of_states()
    _, *train = of_split("train", features)
    _, *validation = of_split("validation", features)
    _, test, actual = of_split("test", features)
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


@pytest.mark.parametrize("labels", ["three", "number"])
def test_with_a_refit_the_regression_learns_from_validation_too_with_the_penalty_that_it_chose(
    world, monkeypatch, labels
):
    monkeypatch.chdir(world)
    loss, make = {"three": (log_loss, logistic), "number": (squared_error, ridge)}[labels]
    _, metric, score = KINDS[labels]
    scored = evaluate_run(data=labels, train={"refit": True})
    workspace.change(train={"refit": False})
    features = mean_of_states()
    _, *train = of_split("train", features)
    _, *validation = of_split("validation", features)
    _, test, actual = of_split("test", features)
    chosen = best(loss, make, train, validation)
    together = [np.concatenate(both) for both in zip(train, validation, strict=True)]
    regression = clone(chosen).fit(*together).predict(test)
    assert scored[f"{metric}_regression"] == pytest.approx(score(actual, regression), abs=1e-4)
    assert scored[f"{metric}_regression"] != pytest.approx(score(actual, chosen.predict(test)), abs=1e-4)
    assert scored["regression_examples"] == len(train[1]) + len(validation[1])


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
    _, features, actual = of_split("test", mean_of_states())
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
    features = mean_of_states()
    by_split = {split: of_split(split, features) for split in ("train", "validation", "test")}
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
    assert (usual["regression_examples"], fewer["regression_examples"]) == (
        len(of_split("train", mean_of_states())[1]),
        20,
    )
    assert {name: value for name, value in usual.items() if name not in of_regression} == without
    assert without == {name: value for name, value in fewer.items() if name not in of_regression}
    assert len(of_regression) == 1 + 2 * 4


@pytest.mark.parametrize(("architecture", "labels"), [("bert", "two"), ("roberta", "three"), ("gpt2", "two")])
def test_an_adapter_of_regression_answers_as_scikit_learn_everywhere(world, monkeypatch, architecture, labels):
    monkeypatch.chdir(world)
    folder = FOLDER.with_name(architecture)
    if not folder.exists():
        models.save(folder, architecture)
    usual = Path("params.yaml").read_bytes()
    scored = evaluate_run(data=labels, model=str(folder), **PLAIN)
    names = report(artifacts.ADAPTER / "task.json")["labels"]
    features = read_by_head(architecture, len(names))
    _, *train = of_split("train", features, folder)
    _, *validation = of_split("validation", features, folder)
    examples, test, actual = of_split("test", features, folder)
    has_bias = architecture != "gpt2"

    def make(strength):
        scaler = StandardScaler(with_mean=has_bias)
        regression = LogisticRegression(C=strength, fit_intercept=has_bias, max_iter=1000)
        return make_pipeline(scaler, regression)

    fitted = [make(strength).fit(*train) for strength in STRENGTHS]
    best_one = min(fitted, key=lambda estimator: log_loss(estimator, *validation))
    (temperature,) = report(artifacts.ADAPTER / "task.json")["temperatures"]
    odds = best_one.decision_function(test) / temperature
    rising = odds if odds.ndim == 2 else np.stack([0 * odds, odds], axis=1)
    expected = special.softmax(rising, axis=1)
    assert scored["accuracy"] == pytest.approx(best_one.score(test, actual), abs=1e-6)
    trained = report(artifacts.TRAIN_METRICS)
    assert trained["best_score"] == pytest.approx(best_one.score(*validation), abs=1e-6)
    assert (trained["read"], trained["steps"], scored["adapter_trained"]) == (len(train[1]), 0, 0)

    asked = examples["text"].tolist()
    file = kit.write("asked.csv", [{"text": text} for text in asked])
    printed = table(said(predict, "--file", str(file), "--column", "text"))
    of_predict = [[float(line[f"p({name})"]) for name in names] for line in printed]
    assert np.array(of_predict) == pytest.approx(expected, abs=CLOSE[architecture])
    by_peft = plain.adapted(plain.base_model(folder, num_labels=len(names)), artifacts.ADAPTER)
    logits = plain.logits_alone(by_peft, folder, [(text,) for text in asked], LENGTH)
    assert special.softmax(logits.numpy(), axis=1) == pytest.approx(expected, abs=CLOSE[architecture])
    bank = AdapterBank(plain.base_model(folder, num_labels=2))
    bank.add("mine", artifacts.ADAPTER)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, shares in zip(asked[:5], expected, strict=False):
        with torch.no_grad():
            rows_of_bank = bank(**plain.encoded(tokenizer, (text,), LENGTH), adapter_names=["mine"])
        (answer,) = bank.answers(rows_of_bank.logits, ["mine"])
        assert list(answer.probabilities.values()) == pytest.approx(shares, abs=CLOSE[architecture])
    Path("params.yaml").write_bytes(usual)


def test_tenants_share_a_base_model_with_a_regression_each(world, monkeypatch):
    monkeypatch.chdir(world)
    usual = Path("params.yaml").read_bytes()
    folder = FOLDER.with_name("bert")
    if not folder.exists():
        models.save(folder, "bert")
    evaluate_run(data="shops", model=str(folder), tenants={"precision": "float32"}, **PLAIN)
    features = read_by_head("bert", sum(map(len, LABELS.values())))
    by_split = {split: of_split(split, features, folder) for split in ("train", "validation", "test")}
    predicted = np.array([row["predicted"] for row in table(artifacts.EVALUATE_PREDICTIONS)])
    for number, (tenant, labels) in enumerate(LABELS.items()):
        own = {}
        for split, (examples, read, classes) in by_split.items():
            of_tenant = (examples["tenant"] == number).to_numpy()
            own[split] = read[of_tenant], classes[of_tenant]
        expected = predicted_classes(own["train"], own["validation"], own["test"][0])
        of_tenant = (by_split["test"][0]["tenant"] == number).to_numpy()
        assert predicted[of_tenant].tolist() == [labels[place] for place in expected], tenant
    Path("params.yaml").write_bytes(usual)


IDLE = {"epochs": 3, "patience": 1, "class_weights": "balanced", "precision": "bf16", "report_to": ["tensorboard"]}


@pytest.mark.parametrize("key", IDLE)
def test_what_a_regression_does_not_read_is_refused(world, monkeypatch, key):
    monkeypatch.chdir(world)
    usual = Path("params.yaml").read_bytes()
    beside = {"epochs": 3} if key == "patience" else {}
    workspace.change(**PLAIN)
    workspace.change(train=beside | {key: IDLE[key]})
    lines = 1 + len(beside)
    says = f"train.{key}: {IDLE[key]} has no effect: adapter: regression has no training loop; leave it at"
    refused(run, FACTORIZE, says=says.replace("['tensorboard']", "('tensorboard',)"), lines=lines)
    Path("params.yaml").write_bytes(usual)


def test_validation_texts_of_a_class_that_train_lacks_choose_no_penalty():
    estimator = regression.ESTIMATORS["single_label_classification"]
    others = set()
    for seed in range(6):
        random = np.random.default_rng(seed)
        features = random.normal(size=(90, 30))
        labels = (features[:, 0] * 4 + random.logistic(size=90) > 0).astype(int)
        train = features[:60], labels[:60]
        wanted = np.append(labels[61:], 2)  # the last one has a class of its own
        held_out = features[60:]
        fitted = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in STRENGTHS]
        losses = [metrics.log_loss(wanted[:-1], one.fit(*train).predict_proba(held_out[:-1])) for one in fitted]
        expected = fitted[int(np.argmin(losses))].decision_function(features)
        layer = regression.fit(estimator, 3, train, (held_out, wanted))
        outputs = layer.outputs(features)
        assert (outputs[:, 1] - outputs[:, 0]).numpy() == pytest.approx(expected, abs=1e-3)
        others.add(int(np.argmin(losses)))
        alone = regression.fit(estimator, 3, train, (held_out[-1:], wanted[-1:])).outputs(features)
        usual = fitted[STRENGTHS.index(regression.USUAL)].decision_function(features)
        assert (alone[:, 1] - alone[:, 0]).numpy() == pytest.approx(usual, abs=1e-3)
    assert len(others) > 1
