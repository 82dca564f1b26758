"""The end of a run is one screen of what the reports say: held to a screen that is written by hand."""

from pathlib import Path

import pytest

from tests.helpers import edit, printed, read_json, refused, write

METRICS = Path("reports/evaluate/metrics.json")
EXPECTED = Path(__file__).with_name("screen.txt")
SCORES = {  # as a run with other seeds could have them; on any machine the same
    "score": 0.842,
    "accuracy": 0.842,
    "accuracy_low": 0.82,
    "accuracy_high": 0.86,
    "accuracy_baseline": 0.5,
    "accuracy_over_baseline": 0.342,
    "accuracy_over_baseline_low": 0.32,
    "accuracy_over_baseline_high": 0.36,
    "accuracy_regression": 0.85,
    "accuracy_over_regression": -0.008,
    "accuracy_over_regression_low": -0.02,
    "accuracy_over_regression_high": 0.004,
    "regression_examples": 55,
    "f1": 1.0,
    "f1_low": 1.0,
    "f1_high": 1.0,
    "f1_baseline": 0.0,
    "adapter_trained": 4716,
    "head_parameters": 770,
    "base_parameters": 22713216,
    "adapter_bytes": 24408,
}
CLASSES = [
    {"class": "dry", "precision": 1, "recall": 0.5, "f1": 0.8, "texts": 50, "answers": 41},
    {"class": "wet", "precision": 1, "recall": 0.5, "f1": 0.75, "texts": 50, "answers": 57},
]


@pytest.fixture
def reports(copied, monkeypatch):
    """The test is in a workspace after a run, whose reports have scores that are known."""
    copied()
    for name in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "tests")  # or the screen would end with how to get one
    write(METRICS, SCORES | {"data": "two"})
    write(Path("reports/train/metrics.json"), {"steps": 450, "read": 14350})
    write(Path("reports/factorize_init/metrics.json"), {"start_batches": 188, "start_read": 1504})
    write(Path("reports/evaluate/classes.csv"), CLASSES)


def screen():
    """Return the screen as one line, without its line breaks."""
    return " ".join(printed("pipeline.summary").split())


@pytest.mark.usefixtures("reports")
def test_the_screen_has_scores_sizes_work_and_what_is_next():
    assert printed("pipeline.summary") == EXPECTED.read_text(encoding="utf-8")


BETTER = "better than the constant baseline by 0.1 (95 %: 0.05 to 0.15)"
WORSE = "worse than the constant baseline by 0.1 (95 %: 0.05 to 0.15)"
NOT_BETTER = "not better than the constant baseline: difference 0.02 (95 %: -0.01 to 0.05)"


@pytest.mark.usefixtures("reports")
@pytest.mark.parametrize(
    ("ends", "words"),
    [((0.1, 0.05, 0.15), BETTER), ((-0.1, -0.15, -0.05), WORSE), ((0.02, -0.01, 0.05), NOT_BETTER)],
)
def test_words_say_whether_a_run_is_significantly_better_than_the_baseline(ends, words):
    names = ("accuracy_over_baseline", "accuracy_over_baseline_low", "accuracy_over_baseline_high")
    edit(METRICS, **dict(zip(names, ends, strict=True)))
    assert f" {words}" in screen()


def test_the_scores_of_a_real_run_are_those_of_its_reports(copied):
    copied()
    metrics = read_json(METRICS)
    metrics |= metrics["details"][0]
    shown = screen()
    for name in ("accuracy", "accuracy_low", "accuracy_high", "accuracy_baseline", "accuracy_regression", "f1"):
        assert f"{metrics[name]:.4g}" in shown


@pytest.mark.usefixtures("reports")
def test_a_screen_of_another_run_or_of_none_is_refused():
    edit(METRICS, data="three")
    refused("pipeline.summary", says="three")
    METRICS.unlink()
    refused("pipeline.summary", says="metrics.json")
