"""Scores of a run are those of scikit-learn and scipy, from what plain transformers say of each text alone.

Each case has a test file of its own, so that classes may be missing, rare or alone, and outputs may be equal.
"""

import shutil
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from transformers import AutoTokenizer

from tests import reference, rows
from tests.helpers import edit, printed, read_json, read_table, read_yaml, refused, run_stages, write

RESAMPLES = 100
BINS = 15  # of probabilities, for the calibration error
ROUNDED = 2e-6  # reports have six significant digits
ADAPTER = "artifacts/adapter"
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
CURVES = {
    "roc_auc": metrics.roc_auc_score,
    "average_precision": metrics.average_precision_score,
}
ERRORS = {
    "rmse": metrics.root_mean_squared_error,
    "mae": metrics.mean_absolute_error,
}
NUMBERS = {
    "train": range(60),
    "validation": range(60, 110),
    "test": range(110, 150),
}
FILES = {split: f"data/{split}.csv" for split in NUMBERS}
OF_CLASSES = ["accuracy", "macro_f1", "matthews_correlation"]
TAGS = {
    "multi_label": "tags",
    "separator": "|",
    "names": ["wet", "awake", "seldom", "never"],
}
RATING = {"column": "rating", "low": 0.0, "high": 4.0}
ENTRIES = {
    "two": {"label": rows.WEATHER | {"positive": "wet"}, "metrics": [*OF_CLASSES, "f1"]},
    "three": {"label": {"column": "size", "names": ["mid", "low", "high"]}, "metrics": OF_CLASSES},
    "multi_label": {"label": TAGS, "metrics": ["micro_f1", "macro_f1"]},
    "number": {"label": RATING, "metrics": ["pearson", "spearman"]},
}
LONGEST = {"two": 8, "three": 24, "multi_label": 24, "number": 8}  # tokens: without their ends, many texts are equal
OTHERS = {"rare": "two", "alone": "two", "constant": "number"}  # the same model on another test file
CASES = ENTRIES | {name: ENTRIES[model] for name, model in OTHERS.items()}
SINGLE = ["two", "rare", "alone", "three"]


class Judged(NamedTuple):
    """A run with a test file, and what plain libraries know of it."""

    folder: Path
    report: dict
    task: dict
    actual: np.ndarray  # class numbers, flags of labels, or numbers
    outputs: np.ndarray  # logits, or numbers

    @property
    def kind(self):
        return self.task["kind"]

    @property
    def names(self):
        return self.task["labels"]

    @property
    def predicted(self):
        """What the outputs mean."""
        if self.kind == "number":
            return self.outputs[:, 0]
        if self.kind == "classes":
            return self.outputs.argmax(axis=1)
        shares = special.expit(self.outputs)
        return (shares >= self.task["thresholds"]).astype(int)

    @property
    def temperature(self):
        (temperature,) = set(self.task["temperatures"])
        return temperature


def table_of(split):
    """Return the rows of a split; few have the label `seldom`, and none of test has `never` or is `high`."""
    table = []
    for number in NUMBERS[split]:
        row = rows.example(number)
        tags = [tag for tag in row["tags"].split("|") if tag in TAGS["names"]]
        if number % 19 == 0:
            tags.append("seldom")
        if split != "test" and number % 7 == 0:
            tags.append("never")
        if split == "test" and row["size"] == "high":
            row["size"] = "low"
        row["text"] = f"the {row['animal']} in the {row['place']} {row['text']}"
        row["tags"] = "|".join(tags)
        table.append(row)
    return table


def is_kept(name, row):
    """Whether a row of test is in the file of a case."""
    if name == "alone":
        return row["weather"] == "wet"
    if name == "rare":
        return row["weather"] == "dry" or row["at"] in (116, 118)
    return True


def make_case(folder, name):
    """Run all stages on the files of a case."""
    source = {"kind": "files", "files": FILES}
    entry = {"source": source, "text": ["text"]} | ENTRIES[name]
    rows.make_workspace(
        folder,
        "mine",
        adapter="lora",
        entries={"mine": entry},
        tokenize={"max_length": LONGEST[name]},
        train={"epochs": 4},
        evaluate={"batch_size": 1, "resamples": RESAMPLES},
    )
    for split, path in FILES.items():
        write(folder / path, table_of(split))
    return run_stages(folder)


def set_head(value):
    """Return a change of an adapter that sets all weights of the head."""

    def change(tensors):
        for name, tensor in tensors.items():
            if name.endswith("classifier.weight"):
                tensor.fill_(value)

    return change


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A function that returns a case after all stages."""

    @cache
    def folder_of(name):
        folder = tmp_path_factory.mktemp(name)
        if name in ENTRIES:
            return make_case(folder, name)
        shutil.copytree(folder_of(OTHERS[name]), folder, dirs_exist_ok=True)
        kept = [row for row in table_of("test") if is_kept(name, row)]
        write(folder / FILES["test"], kept)
        if name == "constant":
            edit(folder / WEIGHTS, set_head(0.0))
        return run_stages(folder, "tokenize", "evaluate")

    @cache
    def of(name):
        folder = folder_of(name)
        task = read_json(folder / ADAPTER / "task.json")
        report = read_json(folder / "reports/evaluate/metrics.json")
        report |= report.pop("details")[0]
        actual = read_truth(folder, task, "test")
        return Judged(folder, report, task, actual, logits_of(folder, task, "test"))

    return of


def logits_of(folder, task, split):
    """Return what plain transformers and PEFT say of each text of a split alone."""
    texts = [(row["text"],) for row in read_table(folder / FILES[split])]
    count = len(task["labels"] or "1")
    model = reference.load_alone(folder / "models/bert", folder / ADAPTER, count)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    return reference.logits_alone(model, tokenizer, texts, task["max_length"]).numpy()


def read_truth(folder, task, split):
    """Return the labels of a split, from its file."""
    label = read_yaml(folder / "pipeline/datasets.yaml")["mine"]["label"]
    column = label.get("column") or label["multi_label"]
    cells = [row[column] for row in read_table(folder / FILES[split])]
    names = task["labels"]
    if task["kind"] == "number":
        return np.array(cells, float)
    if task["kind"] == "classes":
        return np.array([names.index(cell) for cell in cells])
    flags = []
    for cell in cells:
        tags = cell.split("|")
        flags.append([int(name in tags) for name in names])
    return np.array(flags)


def numbers_of(table, column):
    """Return the numbers of a column of rows."""
    return [float(row[column]) for row in table]


def check(report, name, value, ends):
    """Hold a reported score and its interval to those of a reference."""
    reported = report[f"{name}_low"], report[f"{name}_high"]
    assert report[name] == pytest.approx(value, abs=ROUNDED, rel=1e-5)
    assert reported == pytest.approx(ends, abs=1e-5, rel=1e-5)


def interval_of(name, actual, predicted):
    """Return the exact interval of a fraction, and of F1, which follows from one; otherwise that of a bootstrap."""
    if name == "accuracy":
        return reference.exact_interval(np.sum(actual == predicted), len(actual))
    if name != "f1":
        return reference.bootstrap_interval(reference.SCORES[name], actual, predicted, RESAMPLES)
    hits = np.sum(actual * predicted)
    either = np.sum(actual | predicted)
    ends = np.array(reference.exact_interval(hits, either))
    return tuple(2 * ends / (1 + ends))


@pytest.mark.parametrize("name", CASES)
def test_metrics_and_intervals_are_those_of_scikit_learn_and_scipy(judge, name):
    judged = judge(name)
    assert judged.report["examples"] == len(judged.actual)
    first = CASES[name]["metrics"][0]
    assert judged.report["score"] == judged.report[first]
    for metric in CASES[name]["metrics"]:
        if name == "constant":
            check(judged.report, metric, 0, (0, 0))  # a correlation with a constant
            continue
        value = reference.SCORES[metric](judged.actual, judged.predicted)
        with warnings.catch_warnings(action="ignore"):
            ends = interval_of(metric, judged.actual, judged.predicted)
        check(judged.report, metric, value, ends)


def list_constants(judged):
    """Return every constant prediction."""
    if judged.kind == "classes":
        return range(len(judged.names))
    return product((0, 1), repeat=len(judged.names))


@pytest.mark.parametrize("name", CASES)
def test_a_baseline_is_the_best_constant(judge, name):
    judged = judge(name)
    for metric in CASES[name]["metrics"]:
        scores = []
        if judged.kind == "number":
            scores.append(0)
        else:
            for constant in list_constants(judged):
                predicted = np.full(judged.actual.shape, constant)
                scores.append(reference.SCORES[metric](judged.actual, predicted))
        baseline = judged.report[f"{metric}_baseline"]
        assert baseline == pytest.approx(max(scores), abs=ROUNDED)


def compute_loss(judged, outputs):
    """Return the mean loss of probabilities, or of numbers."""
    if judged.kind == "number":
        return metrics.mean_squared_error(judged.actual, outputs)
    if judged.kind == "classes":
        return metrics.log_loss(judged.actual, outputs, labels=range(len(judged.names)))
    losses = []
    for flags, shares in zip(judged.actual.T, outputs.T, strict=True):
        losses.append(metrics.log_loss(flags, shares, labels=[0, 1]))
    return np.mean(losses)


@pytest.mark.parametrize("name", CASES)
def test_losses_of_the_outputs_and_of_the_best_constant_output(judge, name):
    judged = judge(name)
    flags = judged.actual
    outputs = judged.outputs
    if judged.kind == "classes":
        flags = np.eye(len(judged.names))[judged.actual]
    if judged.kind != "number":
        outputs = reference.probabilities_of(outputs, judged.kind)
    means = np.broadcast_to(flags.mean(axis=0), flags.shape)
    loss = compute_loss(judged, outputs)
    baseline = compute_loss(judged, means)
    assert judged.report["loss"] == pytest.approx(loss, rel=1e-5)
    assert judged.report["loss_baseline"] == pytest.approx(baseline, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", [*SINGLE, "multi_label"])
def test_each_class_has_the_precision_recall_and_f1_of_scikit_learn(judge, name):
    judged = judge(name)
    labels = range(len(judged.names))
    scores = metrics.precision_recall_fscore_support(
        judged.actual, judged.predicted, labels=labels, average=None, zero_division=0
    )
    table = read_table(judged.folder / "reports/evaluate/classes.csv")
    assert [row["class"] for row in table] == judged.names
    for column, values in zip(("precision", "recall", "f1", "texts"), scores, strict=True):
        assert numbers_of(table, column) == pytest.approx(values, abs=ROUNDED)
    for number, row in enumerate(table):
        answers = judged.predicted == number
        if judged.kind == "multi_label":
            answers = judged.predicted[:, number]
        assert int(row["answers"]) == answers.sum()


def average_over_labels(score):
    """Return a function to the mean score of the labels that some texts have and others have not; nan without any."""

    def mean_score(actual, outputs):
        labels = zip(np.atleast_2d(actual.T), np.atleast_2d(outputs.T), strict=True)
        defined = [score(flags, values) for flags, values in labels if np.ptp(flags)]
        return np.mean(defined) if defined else np.nan

    return mean_score


def bootstrap_defined(score, actual, outputs):
    """Return the percentiles of the scores of resamples in which the score is defined."""
    keys = (*np.atleast_2d(outputs.T), *np.atleast_2d(actual.T))
    order = np.lexsort(keys)

    def scored(drawn):
        places = order[drawn]
        return score(actual[places], outputs[places])

    with warnings.catch_warnings(action="ignore"):
        found = stats.bootstrap(
            (np.arange(len(order)),),
            scored,
            n_resamples=RESAMPLES,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return np.nanpercentile(found.bootstrap_distribution, [2.5, 97.5])


@pytest.mark.parametrize("name", ["two", "rare", "multi_label"])
@pytest.mark.parametrize("area", CURVES)
def test_areas_under_curves_leave_out_labels_and_resamples_without_both_classes(judge, name, area):
    judged = judge(name)
    outputs = judged.outputs
    if judged.kind == "classes":
        outputs = outputs[:, 1] - outputs[:, 0]
    score = average_over_labels(CURVES[area])
    ends = bootstrap_defined(score, judged.actual, outputs)
    check(judged.report, area, score(judged.actual, outputs), ends)


@pytest.mark.parametrize("name", ["alone", "three", "number"])
def test_there_is_no_area_of_one_class_of_three_or_of_numbers(judge, name):
    assert not CURVES.keys() & judge(name).report.keys()


@pytest.mark.parametrize("name", ["number", "constant"])
@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_numbers_are_in_their_units_and_the_baseline_is_the_best_constant(judge, name, error):
    judged = judge(name)
    score = ERRORS[error]
    ends = reference.bootstrap_interval(score, judged.actual, judged.predicted, RESAMPLES)
    check(judged.report, error, score(judged.actual, judged.predicted), ends)
    best = np.inf
    for constant in np.linspace(0, 4, 2001):
        constants = np.full(len(judged.actual), constant)
        best = min(best, score(judged.actual, constants))
    assert judged.report[f"{error}_baseline"] == pytest.approx(best, abs=1e-4)


class Confident(NamedTuple):
    """Probabilities of answers, whether these are right, and the Brier scores of texts."""

    probabilities: np.ndarray
    right: np.ndarray
    squares: np.ndarray


def confidence_of(judged, factor=1.0):
    """Return the confidence of outputs times a factor."""
    shares = reference.probabilities_of(factor * judged.outputs, judged.kind)
    if judged.kind == "multi_label":
        squares = (shares - judged.actual) ** 2
        return Confident(shares, judged.actual, squares.mean(axis=1))
    flags = np.eye(len(judged.names))[judged.actual]
    squares = ((shares - flags) ** 2).sum(axis=1)
    if len(judged.names) == 2:
        squares /= 2  # that of one of two classes, as scikit-learn has it
    right = shares.argmax(axis=1) == judged.actual
    return Confident(shares.max(axis=1), right.astype(int), squares)


def calibration_error(right, probabilities):
    """Return the mean over answers of the distance between probability and frequency in bins of equal width."""
    bins = (BINS * probabilities).astype(int)
    bins = np.minimum(bins, BINS - 1)
    error = 0.0
    excess = right - probabilities
    for number in range(BINS):
        inside = bins == number
        error += abs(excess[inside].sum())
    return error / right.size


def mean_of_squares(_, squares):
    return squares.mean()


@pytest.mark.parametrize("name", [*SINGLE, "multi_label"])
@pytest.mark.parametrize("head", ["calibrated", "uncalibrated"])
def test_calibration_errors_and_brier_scores_with_and_without_the_temperature(judge, name, head):
    judged = judge(name)
    prefix = ""
    factor = 1.0
    if head == "uncalibrated":
        prefix = "uncalibrated_"
        factor = judged.temperature
    shares, right, squares = confidence_of(judged, factor)
    error = calibration_error(right, shares)
    low, high = reference.bootstrap_interval(calibration_error, right, shares, RESAMPLES)
    basic = max(0, 2 * error - high), max(error, 2 * error - low)
    check(judged.report, f"{prefix}ece", error, basic)
    ends = reference.bootstrap_interval(mean_of_squares, right, squares, RESAMPLES)
    check(judged.report, f"{prefix}brier", squares.mean(), ends)

    frequencies, means = calibration_curve(right.ravel(), shares.ravel(), n_bins=BINS)
    table = read_table(judged.folder / "reports/evaluate/reliability.csv")
    points = [row for row in table if row["head"] == head]
    assert numbers_of(points, "probability") == pytest.approx(means, abs=ROUNDED)
    assert numbers_of(points, "frequency") == pytest.approx(frequencies, abs=ROUNDED)
    assert sum(numbers_of(points, "answers")) == right.size


@pytest.mark.parametrize("name", ["two", "three"])
def test_brier_scores_are_those_of_scikit_learn(judge, name):
    judged = judge(name)
    shares = special.softmax(judged.outputs, axis=1)
    if name == "two":
        shares = shares[:, 1]
    brier = metrics.brier_score_loss(judged.actual, shares, labels=range(len(judged.names)))
    assert judged.report["brier"] == pytest.approx(brier, abs=ROUNDED)


@pytest.mark.parametrize("name", ["two", "three"])
def test_coverage_and_accuracy_if_an_answer_needs_a_probability(judge, name):
    judged = judge(name)
    shares, right, _ = confidence_of(judged)
    table = read_table(judged.folder / "reports/evaluate/coverage.csv")
    assert float(table[-1]["coverage"]) == 1
    coverages = []
    accuracies = []
    for least in numbers_of(table, "min_probability"):
        is_answered = shares >= least - ROUNDED
        coverages.append(is_answered.mean())
        accuracies.append(right[is_answered].mean())
    assert numbers_of(table, "coverage") == pytest.approx(coverages, abs=ROUNDED)
    assert numbers_of(table, "accuracy") == pytest.approx(accuracies, abs=ROUNDED)
    several = judge("multi_label").folder  # where no answer can be left out
    assert not read_table(several / "reports/evaluate/coverage.csv")


@pytest.mark.parametrize("name", ["two", "three", "multi_label"])
def test_the_temperature_in_the_head_is_the_minimum_that_scipy_finds(judge, name):
    """The cross-entropy is that of validation, in which one more text has each class in equal parts."""
    judged = judge(name)
    logits = logits_of(judged.folder, judged.task, "validation")
    actual = read_truth(judged.folder, judged.task, "validation")
    if name == "multi_label":
        actual = actual.ravel()
        logits = np.stack([np.zeros(actual.size), logits.ravel()], axis=1)
    count, width = logits.shape
    targets = (count * np.eye(width)[actual] + 1 / width) / (count + 1)

    def cross_entropy(log):
        shares = special.log_softmax(logits / np.exp(log), axis=1)
        return -np.sum(targets * shares)

    found = optimize.minimize_scalar(cross_entropy, bounds=(-2, 2), method="bounded", options={"xatol": 1e-9})
    assert np.exp(found.x) == pytest.approx(1, rel=2e-3)
    assert abs(np.log(judged.temperature)) > 0.05


@pytest.mark.parametrize("name", ["two", "multi_label", "number"])
def test_score_prints_what_evaluate_has_written(judge, name, monkeypatch):
    judged = judge(name)
    monkeypatch.chdir(judged.folder)
    line = printed("pipeline.score", "mine", ADAPTER).splitlines()[-1]
    size = (judged.folder / WEIGHTS).stat().st_size
    assert f"{size:,}" in line
    assert f" {len(judged.actual)}" in line
    for metric in CASES[name]["metrics"]:
        assert f"{judged.report[metric]:.4f}" in line


def test_a_diverged_model_is_named_as_such(judge, tmp_path, monkeypatch):
    shutil.copytree(judge("number").folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    edit(tmp_path / WEIGHTS, set_head(np.nan))
    refused("stages.evaluate", says="finite")
