import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from pipeline.core.errors import UserError
from pipeline.tasks import scores
from pipeline.tasks.intervals import intervals
from tests.pipeline.tasks.samples import OF_NUMBERS, OF_TWO, noisy_numbers, two_classes


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


@pytest.mark.parametrize("constant", [0.1, 1e9])
def test_a_correlation_with_a_constant_is_zero_without_a_warning(constant):
    labels = np.arange(7.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.score(OF_NUMBERS, np.full(7, constant), labels) == {"pearson": 0.0, "spearman": 0.0}
        assert scores.score(OF_NUMBERS, labels, np.full(7, constant)) == {"pearson": 0.0, "spearman": 0.0}
        assert intervals(OF_NUMBERS, np.full(7, constant), labels, 100)["pearson"] == (0.0, 0.0)


def test_an_exact_match_is_a_group_without_a_mistake():
    labels, predictions = np.array([1, 0, 1, 0, 0, 1]), np.array([1, 0, 1, 1, 0, 0])
    groups = np.array([7, 7, 2, 2, 2, 5])
    # Group 7 is right, 2 has one mistake and 5 another; F1 over all: 2 hits, 1 false alarm, 1 miss.
    found = scores.score(["f1", "exact_match"], predictions, labels, groups)
    assert found == {"f1": pytest.approx(2 / 3), "exact_match": pytest.approx(1 / 3)}


def test_a_diverged_model_is_named_as_such():
    with pytest.raises(UserError, match=r"1 of 3 are not finite numbers: training diverged; lower learning_rate"):
        scores.score(["pearson"], np.array([0.0, np.nan, 1.0]), np.arange(3.0))
