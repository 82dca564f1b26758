"""Errors in the units of labels and areas under curves are those of scikit-learn; intervals resample examples."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, mean_absolute_error, roc_auc_score, root_mean_squared_error

from pipeline import tasks
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks import Facts, Outcome, reported
from tests import workspace
from tests.pipeline.tasks import references

AREAS = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
ERRORS = {"rmse": root_mean_squared_error, "mae": mean_absolute_error}
SOURCE = {"source": {"kind": "files", "files": {"train": "any.csv"}}, "text": ["text"], "metrics": ["accuracy"]}
CUT = {"split": {"validation": 0.2, "test": 0.2}}


def classes(*names, **more):
    return SOURCE | CUT | {"label": {"column": "label", "names": list(names)}} | more


def report(row, outcome):
    task = tasks.of(DatasetEntry.model_validate(row), Facts())
    return reported.report(task, outcome, references.RESAMPLES)


def check(found, name, score, actual, predicted):
    assert found[name] == pytest.approx(score(actual, predicted), abs=1e-12)
    ends = found[f"{name}_low"], found[f"{name}_high"]
    assert ends == pytest.approx(references.resampled(score, actual, predicted), abs=1e-9)
    assert ends[0] < found[name] < ends[1]


def test_errors_of_a_number_are_in_its_units_beside_those_of_the_best_constant():
    random = np.random.default_rng(0)
    labels = random.integers(0, 21, 90) / 5
    outputs = torch.from_numpy((labels + random.normal(size=90))[:, None].astype(np.float32))
    found = report(workspace.ROWS["ratings"], Outcome(outputs, labels))
    for name, score in ERRORS.items():
        check(found, name, score, labels, outputs[:, 0].numpy().astype(np.float64))
    constants = np.linspace(0, 4, 2001)
    for name, score in ERRORS.items():
        best = min(score(labels, np.full(90, constant)) for constant in constants)
        assert found[f"{name}_baseline"] == pytest.approx(best, abs=1e-5)
    [(word, line)] = reported.describe(found, "stars")
    assert word == "errors"
    assert line.endswith(f"; constant {found['mae_baseline']:.3g}), in units of stars")


@pytest.mark.parametrize("shift", [0.0, 1800.0])
def test_errors_above_those_of_the_mean_are_a_line(shift):
    random = np.random.default_rng(0)
    labels = random.integers(0, 21, 90) / 5
    predicted = labels - shift + random.normal(size=90)
    found = report(workspace.ROWS["ratings"], Outcome(torch.from_numpy(predicted[:, None].astype(np.float32)), labels))
    lines = dict(reported.describe(found, "price"))
    assert ("mean" in lines) == (root_mean_squared_error(labels, predicted) > labels.std()) == bool(shift)
    if shift:
        assert lines["mean"].startswith("the mean of price has smaller errors than the predictions; train longer")


def test_areas_of_two_classes_are_those_of_the_second_also_where_scores_are_equal():
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 120)
    leads = np.round(labels + random.normal(size=120), 1)  # some are equal
    outputs = torch.from_numpy(np.stack([-leads / 2, leads / 2], axis=1).astype(np.float32))
    found = report(classes("no", "yes"), Outcome(outputs, labels))
    exact = outputs.numpy().astype(np.float64)
    for name, score in AREAS.items():
        check(found, name, score, labels, exact[:, 1] - exact[:, 0])


def test_areas_of_multi_label_are_the_mean_over_labels_that_occur():
    random = np.random.default_rng(2)
    labels = (random.random((100, 3)) < [0.3, 0.5, 0.0]).astype(float)
    outputs = (labels + random.normal(size=(100, 3))).astype(np.float32)
    found = report(workspace.ROWS["animals"], Outcome(torch.from_numpy(outputs), labels))

    def mean_of(area):
        return lambda actual, predicted: np.mean([area(actual[:, at], predicted[:, at]) for at in (0, 1)])

    for name, score in AREAS.items():
        check(found, name, mean_of(score), labels.astype(int), outputs.astype(np.float64))


def defined_ends(score, actual, predicted):
    """Return the percentiles of the scores of resamples, without those in which no score is defined."""
    order = np.lexsort((*predicted.T, *actual.T))
    drawn = stats.bootstrap(
        (np.arange(len(order)),),
        lambda numbers: score(actual[order[numbers]], predicted[order[numbers]]),
        n_resamples=references.RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution
    assert 0 < np.isnan(drawn).mean() < 1
    return np.nanpercentile(drawn, [2.5, 97.5])


def mean_of_defined(score, actual, predicted):
    """Return the mean score of the labels that some texts have and others have not; nan if there are none."""
    labels = zip(actual.T, predicted.T, strict=True)
    each = [score(applies, lead) for applies, lead in labels if np.ptp(applies)]
    return np.mean(each) if each else np.nan


@pytest.mark.parametrize("rare", [[0, 1], [0, 1, 2]])
def test_a_resample_without_a_text_of_a_rare_class_or_label_says_nothing_of_its_area(rare):
    random = np.random.default_rng(4)
    labels = np.zeros((60, 2), np.int64)
    labels[rare, 0] = 1
    labels[:, 1] = random.integers(0, 2, 60)
    outputs = (3 * labels + random.normal(size=(60, 2))).astype(np.float32)
    of_two = np.stack([0 * outputs[:, 0], outputs[:, 0]], axis=1)
    with_third = ((0, 0), (0, 1))  # a label that no text has
    several = Outcome(torch.from_numpy(np.pad(outputs, with_third)), np.pad(labels, with_third).astype(float))
    with warnings.catch_warnings(action="error"):
        two = report(classes("no", "yes"), Outcome(torch.from_numpy(of_two), labels[:, 0]))
        many = report(workspace.ROWS["animals"], several)
    exact = outputs.astype(np.float64)
    for name, score in AREAS.items():
        mean_of = partial(mean_of_defined, score)
        ends = defined_ends(mean_of, labels[:, :1], exact[:, :1])
        assert (two[f"{name}_low"], two[f"{name}_high"]) == pytest.approx(ends, abs=1e-9)
        assert two[f"{name}_low"] > 0
        assert many[name] == pytest.approx(mean_of(labels, exact))
        ends = references.resampled(mean_of, several.labels.astype(int), several.outputs.numpy().astype(np.float64))
        assert (many[f"{name}_low"], many[f"{name}_high"]) == pytest.approx(ends, abs=1e-9)


def test_there_is_no_area_where_all_texts_have_one_class_or_the_same_labels():
    outputs = torch.from_numpy(np.random.default_rng(5).normal(size=(20, 3)).astype(np.float32))
    two = Outcome(outputs[:, :2], np.zeros(20, np.int64))
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(roc_auc_score(two.labels, outputs[:, 1]))
    assert report(classes("no", "yes"), two) == {}
    assert report(workspace.ROWS["animals"], Outcome(outputs, np.tile([0.0, 1.0, 0.0], (20, 1)))) == {}


def test_groups_are_resampled_as_wholes():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), 4)
    labels = random.integers(0, 2, 120)
    leads = labels + random.normal(size=120)[groups] + random.normal(size=120)
    outputs = torch.from_numpy(np.stack([0 * leads, leads], axis=1).astype(np.float32))
    alone = report(classes("no", "yes"), Outcome(outputs, labels))
    row = classes("no", "yes", group=["text"], metrics=["exact_match"])
    found = report(row, Outcome(outputs, labels, groups))
    assert found["roc_auc"] == alone["roc_auc"] == pytest.approx(roc_auc_score(labels, outputs[:, 1]))
    draws = np.random.default_rng(5)
    lead = outputs[:, 1].numpy()
    areas = []
    for _ in range(2000):
        rows = (4 * draws.integers(0, 30, 30)[:, None] + np.arange(4)).ravel()
        areas.append(roc_auc_score(labels[rows], lead[rows]))
    assert (found["roc_auc_low"], found["roc_auc_high"]) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.03)


def test_more_classes_and_tenants_have_neither():
    outcome = Outcome(torch.eye(3), np.arange(3))
    assert report(classes("a", "b", "c"), outcome) == {}
    assert report(workspace.ROWS["shops"], outcome) == {}
