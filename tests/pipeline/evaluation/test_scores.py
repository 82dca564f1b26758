import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn import metrics as sklearn_metrics

from pipeline.errors import UserError
from pipeline.evaluation import scores

OF_TWO = ("accuracy", "f1", "macro_f1", "matthews_correlation")
OF_NUMBERS = ("pearson", "spearman")
ROWS = st.integers(1, 40)


@st.composite
def class_pairs(draw, most=5):
    """Predictions and labels of up to 40 examples."""
    highest, rows = draw(st.integers(2, most)) - 1, draw(ROWS)
    return tuple(draw(arrays.arrays(np.int64, rows, elements=st.integers(0, highest))) for _ in range(2))


@st.composite
def number_pairs(draw):
    """Predictions and labels with ties: multiples of one fifth, as in a similarity task."""
    rows = draw(ROWS)
    return tuple(draw(arrays.arrays(np.int64, rows, elements=st.integers(-10, 25))) / 5 for _ in range(2))


def two_classes(rows, accuracy=0.8, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    return np.where(random.random(rows) < accuracy, labels, 1 - labels), labels


def noisy_numbers(rows, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 26, rows) / 5
    return labels + random.normal(size=rows), labels


def of_one_sample(name, predictions, labels):
    """The stacked form of a score on a stack of one, the sample itself."""
    if name in OF_NUMBERS:
        return scores._OF_PAIRS[name](scores._Pairs(labels[None], predictions[None]))[0]
    classes = np.arange(max(2, labels.max() + 1, predictions.max() + 1))
    true, predicted = labels[:, None] == classes, predictions[:, None] == classes
    counts = [hot.sum(axis=0, dtype=float)[None] for hot in (true & predicted, true, predicted)]
    return scores._OF_COUNTS[name](scores._Counts(*counts))[0]


@given(class_pairs(most=2))
def test_the_stacked_form_of_a_score_of_two_classes_equals_the_library(pair):
    expected = scores.score(OF_TWO, *pair)
    assert {name: of_one_sample(name, *pair) for name in OF_TWO} == pytest.approx(expected, abs=1e-12)


@given(class_pairs())
def test_the_stacked_form_of_a_score_of_many_classes_equals_the_library(pair):
    names = ("accuracy", "macro_f1", "matthews_correlation")
    expected = scores.score(names, *pair)
    assert {name: of_one_sample(name, *pair) for name in names} == pytest.approx(expected, abs=1e-12)


@given(number_pairs())
def test_the_stacked_form_of_a_score_of_numbers_equals_the_library(pair):
    expected = scores.score(OF_NUMBERS, *pair)
    assert {name: of_one_sample(name, *pair) for name in OF_NUMBERS} == pytest.approx(expected, abs=1e-9)


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


def test_f1_is_that_of_class_one():
    predictions, labels = np.array([1, 1, 0, 0, 0, 0]), np.array([1, 0, 1, 0, 0, 0])
    assert scores.score(["f1"], predictions, labels) == {"f1": pytest.approx(1 / 2)}
    assert scores.score(["f1"], 1 - predictions, 1 - labels) == {"f1": pytest.approx(3 / 4)}


@given(class_pairs(most=2), number_pairs())
def test_scores_stay_in_their_bounds_without_a_warning(classes, numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.score(OF_TWO, *classes) | scores.score(OF_NUMBERS, *numbers)
    assert all(0 <= found[name] <= 1 for name in ("accuracy", "f1", "macro_f1"))
    assert all(-1 - 1e-12 <= found[name] <= 1 + 1e-12 for name in ("matthews_correlation", *OF_NUMBERS))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, 1e-300])
def test_a_correlation_with_a_constant_is_zero_without_a_warning(constant):
    labels = np.arange(7.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.score(OF_NUMBERS, np.full(7, constant), labels) == {"pearson": 0.0, "spearman": 0.0}
        assert scores.score(OF_NUMBERS, labels, np.full(7, constant)) == {"pearson": 0.0, "spearman": 0.0}
        assert scores.intervals(OF_NUMBERS, np.full(7, constant), labels, 100)["pearson"] == (0.0, 0.0)


def test_one_class_alone_scores_without_a_warning():
    nothing = np.zeros(9, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.score(OF_TWO, nothing, nothing)
    assert found == {"accuracy": 1.0, "f1": 0.0, "macro_f1": 1.0, "matthews_correlation": 0.0}


@given(class_pairs(), number_pairs(), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_the_examples_does_not_matter(classes, numbers, random):
    for names, pair in ((("accuracy", "macro_f1"), classes), (OF_NUMBERS, numbers)):
        order = random.sample(range(len(pair[0])), len(pair[0]))
        shuffled = [values[order] for values in pair]
        assert scores.score(names, *shuffled) == pytest.approx(scores.score(names, *pair), abs=1e-9)
        assert scores.intervals(names, *shuffled, 100) == scores.intervals(names, *pair, 100)


@given(class_pairs(), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_interval_of_the_accuracy_contains_the_accuracy(pair, seed):
    low, high = scores.intervals(["accuracy"], *pair, 1000, seed)["accuracy"]
    assert 0 <= low <= scores.score(["accuracy"], *pair)["accuracy"] <= high <= 1


@pytest.mark.parametrize("name", [*OF_TWO, *OF_NUMBERS])
def test_an_interval_is_that_of_scipys_bootstrap(name):
    predictions, labels = noisy_numbers(120) if name in OF_NUMBERS else two_classes(120)

    def statistic(labels, predictions):
        return scores.score([name], predictions, labels)[name]

    expected = stats.bootstrap(
        (labels, predictions), statistic, paired=True, vectorized=False, method="percentile", n_resamples=1000, rng=1
    ).confidence_interval
    found = scores.intervals([name], predictions, labels, 20_000)[name]
    # Two independent runs: the ends differ by their Monte-Carlo error, far less than the width.
    assert found == pytest.approx(tuple(expected), abs=0.12 * (expected.high - expected.low))


@pytest.mark.parametrize("name", [*OF_TWO, *OF_NUMBERS])
def test_intervals_shrink_with_the_root_of_the_number_of_examples(name):
    pair = noisy_numbers(100) if name in OF_NUMBERS else two_classes(100)
    once, often = (np.ptp(scores.intervals([name], *np.tile(pair, copies), 1000)[name]) for copies in (1, 16))
    assert once / often == pytest.approx(4, rel=0.15)


def test_the_interval_covers_the_true_accuracy_as_often_as_it_says():
    runs = [scores.intervals(["accuracy"], *two_classes(400, 0.8, seed), 500)["accuracy"] for seed in range(400)]
    covered = np.mean([low <= 0.8 <= high for low, high in runs])
    assert 0.92 <= covered <= 0.98


def test_intervals_depend_on_the_seed_alone():
    pair = two_classes(50)
    assert scores.intervals(OF_TWO, *pair, 200, 3) == scores.intervals(OF_TWO, *pair, 200, 3)
    assert scores.intervals(["f1"], *pair, 200, 3) != scores.intervals(["f1"], *pair, 200, 4)


def test_an_interval_does_not_depend_on_the_metrics_beside_it():
    pair = two_classes(50)
    assert scores.intervals(["f1"], *pair, 200)["f1"] == scores.intervals(OF_TWO, *pair, 200)["f1"]


@pytest.mark.parametrize("names", [OF_TWO, OF_NUMBERS])
def test_every_resample_is_scored_when_the_stack_comes_in_pieces(names, monkeypatch):
    pair = two_classes(60)
    whole = scores.intervals(names, *pair, 333)
    monkeypatch.setattr(scores, "NUMBERS_AT_ONCE", 200)
    assert list(scores._pieces(333, 60)) == [3] * 111
    pieced = scores.intervals(names, *pair, 333)
    assert [pieced[name] for name in names] == [pytest.approx(whole[name]) for name in names]


@pytest.mark.parametrize(
    ("names", "predictions", "labels", "rule"),
    [
        (["bleu"], [0, 1], [0, 1], "metrics must be among"),
        (["accuracy"], [0, 1, 1], [0, 1], "two equally long rows, got"),
        (["accuracy"], [], [], "two equally long rows, got"),
    ],
)
def test_unusable_input_is_refused_with_the_rule(names, predictions, labels, rule):
    with pytest.raises(ValueError, match=rule):
        scores.score(names, np.array(predictions), np.array(labels))
    with pytest.raises(ValueError, match=rule):
        scores.intervals(names, np.array(predictions), np.array(labels), 100)


def test_a_diverged_model_is_named_as_such():
    with pytest.raises(UserError, match=r"1 of 3 are not finite numbers: training diverged; lower learning_rate"):
        scores.score(["pearson"], np.array([0.0, np.nan, 1.0]), np.arange(3.0))
    with pytest.raises(UserError, match=r"2 of 4 are not finite numbers: training diverged"):
        scores.calibration_error(np.array([[0.5, 0.5], [np.nan, np.nan]]), np.array([0, 0]))


def confident(confidence, right):
    """Two classes, each row this sure of class 1; the label is class 1 where the model is right."""
    confidence = np.asarray(confidence)
    return np.stack([1 - confidence, confidence], axis=1), np.asarray(right).astype(int)


def test_a_model_as_right_as_it_is_sure_is_calibrated():
    assert scores.calibration_error(*confident([0.75] * 4, [1, 1, 1, 0])) == pytest.approx(0)


def test_a_sure_model_that_is_always_wrong_has_calibration_error_one():
    assert scores.calibration_error(*confident([1.0] * 5, [0] * 5)) == 1


def test_the_gaps_of_the_bins_count_by_their_share_of_the_examples():
    probabilities, labels = confident([0.9, 0.9, 0.9, 0.6], [1, 1, 0, 0])
    assert scores.calibration_error(probabilities, labels) == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # 0.8 is the edge between two bins: with 0.75 below it the gaps cancel, in a bin of its own they would not.
    assert scores.calibration_error(*confident([0.8, 0.75], [1, 0])) == pytest.approx(abs(0.2 - 0.75) / 2)


@st.composite
def distributions(draw):
    rows, classes = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    weights = draw(arrays.arrays(np.int64, (rows, classes), elements=st.integers(1, 50))).astype(float)
    return weights / weights.sum(axis=1, keepdims=True), draw(
        arrays.arrays(np.int64, rows, elements=st.integers(0, classes - 1))
    )


@given(distributions(), st.randoms(use_true_random=False))
def test_the_calibration_error_is_the_sum_over_bins_in_any_order(pair, random):
    probabilities, labels = pair
    gaps: dict[int, list[float]] = {}
    for row, label in zip(probabilities, labels, strict=True):
        bin_number = next(k for k in range(1, 16) if row.max() <= np.linspace(0, 1, 16)[k])
        gaps.setdefault(bin_number, []).append(float(row.argmax() == label) - row.max())
    expected = sum(abs(sum(gap)) for gap in gaps.values()) / len(labels)
    order = random.sample(range(len(labels)), len(labels))
    found = scores.calibration_error(probabilities[order], labels[order])
    assert 0 <= found <= 1
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("rows", [[[2.0, -1.0]], [[0.5, 0.6]]])
def test_logits_are_not_taken_for_probabilities(rows):
    with pytest.raises(ValueError, match="were these logits"):
        scores.calibration_error(np.array(rows), np.array([0]))


def test_probabilities_and_labels_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="for 1 labels, got"):
        scores.calibration_error(np.full((2, 2), 0.5), np.array([0]))
