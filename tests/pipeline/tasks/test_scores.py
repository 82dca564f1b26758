"""Scores of what logits answer are the official ones; intervals are exact where a score counts, else of a bootstrap."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.dummy import DummyClassifier
from torch.nn import functional as F

from pipeline import tasks
from pipeline.tasks import Facts, Outcome, scores
from pipeline.tasks.scores import interval, share
from pipeline.tasks.scoring import collect_predictions
from tests.kit import refused
from tests.pipeline.data.rows import NUMBER, SPLITS, row_of

OF_TWO = ("accuracy", "f1", "macro_f1", "matthews_correlation")
OF_NUMBERS = ("pearson", "spearman")


def two_classes(rows):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, rows)
    return np.where(random.random(rows) < 0.8, labels, 1 - labels), labels


def noisy_numbers(rows):
    random = np.random.default_rng(0)
    labels = random.integers(0, 26, rows) / 5
    return labels + random.normal(size=rows), labels


def test_the_scores_are_the_official_ones():
    predictions, labels = two_classes(300)
    numbers, targets = noisy_numbers(300)
    assert scores.score(OF_TWO, predictions, labels) == {
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "f1": sklearn_metrics.f1_score(labels, predictions, pos_label=1),
        "macro_f1": sklearn_metrics.f1_score(labels, predictions, average="macro"),
        "matthews_correlation": sklearn_metrics.matthews_corrcoef(labels, predictions),
    }
    assert scores.score(OF_NUMBERS, numbers, targets) == {
        "pearson": stats.pearsonr(targets, numbers).statistic,
        "spearman": stats.spearmanr(targets, numbers).statistic,
    }


@pytest.mark.parametrize("slope", [-3.7, 0.3])
@pytest.mark.parametrize("name", [*OF_NUMBERS, "matthews_correlation"])
def test_intervals_of_a_correlation_are_within_its_bounds_where_all_is_right_or_reversed(name, slope):
    for seed in range(20):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, 30) if name == "matthews_correlation" else random.normal(size=30)
        predictions = labels if slope > 0 else 1 - labels
        if name in OF_NUMBERS:
            predictions = slope * labels + 10
        low, high = interval(name, predictions, labels, 100)
        assert -1 <= low <= high <= 1
        assert abs(low - np.sign(slope)) < 1e-9
        least, most = scores.difference(name, predictions, predictions[::-1], labels, 100)
        assert -2 <= least <= most <= 2


@pytest.mark.parametrize("constant", [0.1, 1e9])
def test_a_correlation_with_a_constant_is_zero_without_a_warning(constant):
    labels = np.arange(7.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.score(OF_NUMBERS, np.full(7, constant), labels) == {"pearson": 0.0, "spearman": 0.0}
        assert scores.score(OF_NUMBERS, labels, np.full(7, constant)) == {"pearson": 0.0, "spearman": 0.0}
        assert interval("pearson", np.full(7, constant), labels, 100) == (0.0, 0.0)


def test_an_exact_match_is_a_group_without_a_mistake():
    labels, predictions = np.array([1, 0, 1, 0, 0, 1]), np.array([1, 0, 1, 1, 0, 0])
    groups = np.array([7, 7, 2, 2, 2, 5])
    # Group 7 is right, 2 has one mistake and 5 another; F1 over all: 2 hits, 1 false alarm, 1 miss.
    found = scores.score(["f1", "exact_match"], predictions, labels, groups)
    assert found == {"f1": pytest.approx(2 / 3), "exact_match": pytest.approx(1 / 3)}


def test_a_diverged_model_is_named_as_such():
    says = "1 of 3 are not finite numbers: training diverged; lower learning_rate"
    refused(scores.score, ["pearson"], np.array([0.0, np.nan, 1.0]), np.arange(3.0), says=says)


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [
        (66, 66, (0.025 ** (1 / 66), 1.0)),  # the closed forms of no mistake and of no hit
        (0, 20, (0.0, 1 - 0.025 ** (1 / 20))),
        (8, 10, (0.44390, 0.97479)),  # as published tables have it
        (0, 0, (0.0, 1.0)),
    ],
)
def test_a_share_has_the_interval_of_clopper_and_pearson(count, of, expected):
    assert share(count, of) == pytest.approx(expected, abs=1e-5)


def test_the_ends_of_f1_are_those_of_the_share_of_hits_among_what_is_not_rightly_left_aside():
    labels, predictions = np.array([1] * 10 + [0] * 90), np.array([1] * 8 + [0] * 2 + [1] * 4 + [0] * 86)
    low, high = interval("f1", predictions, labels, 100)
    hits = stats.binomtest(8, 14).proportion_ci(method="exact")  # 8 hits, 2 misses, 4 false alarms
    assert (low, high) == pytest.approx((2 * hits.low / (1 + hits.low), 2 * hits.high / (1 + hits.high)))


@pytest.mark.parametrize("name", ["macro_f1", *OF_NUMBERS])
def test_a_bootstrap_has_the_percentiles_of_scores_of_resamples(name):
    predictions, labels = noisy_numbers(120) if name in OF_NUMBERS else two_classes(120)
    random = np.random.default_rng(1)
    drawn = [random.integers(120, size=120) for _ in range(400)]
    found = [scores.score([name], predictions[rows], labels[rows])[name] for rows in drawn]
    low, high = np.percentile(found, [2.5, 97.5])
    # Two independent runs: the ends differ by their Monte-Carlo error, far less than the width.
    assert interval(name, predictions, labels, 400) == pytest.approx((low, high), abs=0.25 * (high - low))


BY_RESAMPLES = ("macro_f1", "matthews_correlation", "micro_f1", *OF_NUMBERS)


@pytest.mark.parametrize(
    ("kind", "is_grouped"),
    [*((kind, False) for kind in BY_RESAMPLES), *((kind, True) for kind in (*BY_RESAMPLES, "accuracy", "f1"))],
)
def test_resamples_that_are_scored_at_once_have_the_interval_of_those_scored_one_by_one(kind, is_grouped):
    """By scipy's bootstrap of scikit-learn's and scipy's scores, with the same draws."""
    random = np.random.default_rng(3)
    if kind in OF_NUMBERS:
        predictions, labels = noisy_numbers(50)
        predictions = np.round(predictions)  # with equal ones
    elif kind == "micro_f1":
        predictions, labels = random.integers(0, 2, (2, 50, 3))
    else:
        predictions, labels = random.integers(0, 2 if kind == "f1" else 4, (2, 50))
        if kind == "macro_f1":
            labels[0] = 4  # a class that many resamples lack
    groups = random.integers(0, 20, 50) if is_grouped else None
    order = np.lexsort((*np.atleast_2d(predictions.T), *np.atleast_2d(labels.T), *([groups] if is_grouped else [])))
    units = [order[groups[order] == one] for one in np.unique(groups)] if is_grouped else [[one] for one in order]

    def scored(drawn):
        rows = np.concatenate([units[number] for number in drawn])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return REFERENCES[kind](labels[rows], predictions[rows])

    expected = stats.bootstrap(
        (np.arange(len(units)),),
        scored,
        n_resamples=300,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert interval(kind, predictions, labels, 300, groups) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_groups_are_drawn_whole():
    # Four copies of each example in a group say no more than one of it.
    predictions, labels = noisy_numbers(60)
    copied = [np.repeat(values, 4) for values in (predictions, labels, np.arange(60))]
    grouped = interval("pearson", *copied[:2], 400, copied[2])
    alone = interval("pearson", *copied[:2], 400)
    assert np.ptp(grouped) == pytest.approx(2 * np.ptp(alone), rel=0.25)


FILES = dict.fromkeys(SPLITS, "a.jsonl")
CHOICES = tasks.of(row_of(FILES, text=["{choice}"], choices=["bad", "good"]))
RATING = tasks.of(row_of(FILES, NUMBER))


REFERENCES = {
    "pearson": lambda labels, predicted: stats.pearsonr(labels, predicted).statistic,
    "spearman": lambda labels, predicted: stats.spearmanr(labels, predicted).statistic,
    "micro_f1": lambda labels, predicted: sklearn_metrics.f1_score(labels, predicted, average="micro"),
    "macro_f1": lambda labels, predicted: sklearn_metrics.f1_score(labels, predicted, average="macro"),
    "f1": sklearn_metrics.f1_score,
    "accuracy": sklearn_metrics.accuracy_score,
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
}


def test_choices_are_answers_to_questions_and_classes_of_examples():
    logits = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0]])
    outcome = Outcome(logits, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    predicted, labels, _ = collect_predictions(CHOICES.scoring, outcome)
    assert (predicted.tolist(), labels.tolist()) == ([1, 0], [1, 1])
    expected = ["wrong", "right", "right", "wrong"]  # not what each would be by itself
    assert CHOICES.scoring.table(outcome)["predicted"] == expected
    metrics = CHOICES.scoring.metrics(outcome, 100)
    assert (metrics["accuracy"], metrics["accuracy_baseline"]) == (0.5, 1.0)
    assert metrics["accuracy_low"] == pytest.approx(0.01258, abs=1e-5)  # 1 of 2 questions, not 2 of 4 examples


def test_a_score_stands_beside_what_one_answer_for_all_has():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    task = tasks.of(row_of(FILES, metrics=["accuracy", "f1", "matthews_correlation"]))
    metrics = task.scoring.metrics(Outcome(logits, np.array([0, 1, 1, 0])), 100)
    assert metrics["accuracy"] == 0.75
    assert (metrics["accuracy_baseline"], metrics["f1_baseline"]) == (0.5, pytest.approx(2 / 3))
    assert metrics["matthews_correlation_baseline"] == 0.0
    assert metrics["loss_baseline"] == pytest.approx(np.log(2))
    numbers = RATING.scoring.metrics(Outcome(torch.tensor([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 5.0])), 100)
    assert (numbers["pearson_baseline"], numbers["loss_baseline"]) == (0.0, pytest.approx(8 / 3))


def best_constant(metric, labels, classes):
    """The best score of scikit-learn's constant classifiers."""
    features = np.zeros((len(labels), 1))
    known = np.unique(classes)
    of = [DummyClassifier(strategy="constant", constant=one).fit(np.zeros((len(known), 1)), known) for one in known]
    return max(SKLEARN[metric](labels, one.predict(features)) for one in of)


SKLEARN = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": lambda labels, predicted: sklearn_metrics.f1_score(labels, predicted, zero_division=0),
    "macro_f1": lambda labels, predicted: sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0),
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.8), (1.0, 0.0), (0.2, 0.5, 0.3), (0.1, 0.0, 0.9)])
@pytest.mark.parametrize("kind", ["classes", "pairs", "groups"])
def test_a_baseline_is_the_best_constant_of_scikit_learn_for_its_metric(shares, kind):
    names = list("abcde")[: len(shares)]
    metrics = [name for name in SKLEARN if name != "f1" or len(shares) == 2]
    labels = np.random.default_rng(0).choice(len(shares), size=120, p=shares)
    outputs, groups = torch.zeros(120, len(shares)), None
    if kind == "pairs":
        if len(shares) > 2:
            pytest.skip("pairs have two classes")
        task = tasks.of(row_of(FILES, NUMBER, pairs={"margin": 1}, metrics=metrics))
    elif kind == "groups":
        metrics, groups = [*metrics, "exact_match"], np.arange(120) // 2
        task = tasks.of(row_of(FILES, {"column": "label", "names": names}, group=["text"], metrics=metrics))
    else:
        task = tasks.of(row_of(FILES, {"column": "label", "names": names}, metrics=metrics))
    found = task.scoring.metrics(Outcome(outputs, labels, groups), 100)
    for metric in metrics:
        if metric == "exact_match":  # of groups as wholes
            pairs = labels.reshape(60, 2)
            expected = max((pairs == one).all(axis=1).mean() for one in range(len(shares)))
        else:
            expected = best_constant(metric, labels, np.arange(len(shares)))
        assert found[f"{metric}_baseline"] == pytest.approx(expected), metric


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.1), (0.05, 0.9, 0.3), (0.2, 0.0, 0.01)])
def test_a_baseline_of_multi_label_rows_is_the_best_of_all_sets_of_labels(shares):
    label = {"multi_label": "label", "names": ["a", "b", "c"]}
    task = tasks.of(row_of(FILES, label, metrics=["micro_f1", "macro_f1"]), Facts(thresholds=(0.5, 0.5, 0.5)))
    labels = (np.random.default_rng(0).random((80, 3)) < shares).astype(float)
    found = task.scoring.metrics(Outcome(torch.zeros(80, 3), labels), 100)
    occurs = labels.any(axis=0)
    constants = [np.tile(one, (80, 1)) for one in product((0.0, 1.0), repeat=3)]
    for average in ("micro", "macro"):
        scored = [
            # A label that nothing has is not counted, unless it is predicted.
            sklearn_metrics.f1_score(
                labels, one, average=average, zero_division=0, labels=np.flatnonzero(occurs | one.any(axis=0))
            )
            for one in constants
        ]
        assert found[f"{average}_f1_baseline"] == pytest.approx(max(scored))


def test_the_balanced_loss_is_the_mean_of_the_means_of_classes():
    task = tasks.of(row_of(dict.fromkeys(SPLITS, "t.csv")))
    labels = torch.tensor([0] * 5 + [1] * 45)
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = (each[:5].mean() + each[5:].mean()) / 2
    torch.testing.assert_close(task.head.build_balanced_loss(labels.numpy())(logits, labels), expected)
    assert task.description.rare(labels.numpy()).startswith("bad 5 (10.0%): ")
    assert not task.description.rare(labels.repeat(20).numpy())


@pytest.mark.parametrize("ratio", [1.0, 1e-10, 1e10, 1e12])
def test_the_interval_of_pearson_does_not_depend_on_units(ratio):
    random = np.random.default_rng(1)
    labels = random.normal(size=200)
    predictions = labels / 2 + random.normal(size=200)
    usual = interval("pearson", predictions, labels, 100)
    assert interval("pearson", predictions, ratio * labels, 100) == pytest.approx(usual)
    assert interval("pearson", ratio * predictions, labels, 100) == pytest.approx(usual)
    nearly_constant = 5 * ratio + ratio * 1e-13 * random.random(200)
    assert interval("pearson", nearly_constant, labels, 100) == (0.0, 0.0)
