"""The end of a run is one screen, of what the reports say."""

import io
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.core import artifacts, console
from pipeline.summary import main
from pipeline.tasks.verdicts import Difference
from tests.kit import refused, said, write
from tests.workspace import change, copy_committed

SCORES = {"score": 0.842, "accuracy": 0.842, "accuracy_baseline": 0.5, "accuracy_low": 0.82, "accuracy_high": 0.86}
F1 = {"f1": 1.0, "f1_baseline": 0.0, "f1_low": 1.0, "f1_high": 1.0}
COUNTS = {"adapter_trained": 4716, "head_parameters": 770, "base_parameters": 22713216, "adapter_bytes": 24408}

IDENTITY = ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A folder with params.yaml, the tables and reports."""
    monkeypatch.chdir(tmp_path)
    copy_committed()
    for name in IDENTITY:
        monkeypatch.setenv(name, "tests")
    write(artifacts.EVALUATE_METRICS, {"data": "movie-reviews"} | SCORES | F1 | COUNTS)
    write(artifacts.TRAIN_METRICS, {"steps": 450, "read": 14350})
    write(artifacts.FACTORIZE_METRICS, {"start_batches": 188, "start_read": 1504})
    classes(negative=(0.8, 41), positive=(0.75, 57))
    reports(losses=[0.5, 0.4])


def reports(losses, truncated=0.0, rows=2000, **counts):
    """Write the reports of the validation loss by epoch, and of the splits."""
    steps = range(221, 221 * (1 + len(losses)), 221)
    curve = [{"step": step, "validation_loss": loss} for step, loss in zip(steps, losses, strict=True)]
    write(artifacts.TRAIN_VALIDATION_LOSS, curve)
    shares = {f"share_{name}": count / rows for name, count in (counts or {"negative": 99, "positive": 101}).items()}
    columns = {"tokens_p50": 26, "tokens_p95": 120, "tokens_p99": 190, "tokens_max": 420, "truncated_share": truncated}
    train = {"part": "train", "rows": rows} | columns | shares
    write(
        artifacts.TOKENIZE_SPLITS,
        [train, {"part": "validation", "rows": 500}, {"part": "left out: missing", "rows": 0}],
    )


def classes(**rows):
    """Write the report of classes: the F1 of each, and how many answers name it."""
    columns = {"precision": 1, "recall": 0.5}
    write(
        artifacts.EVALUATE_CLASSES,
        [{"class": name, **columns, "f1": f1, "texts": 50, "answers": said} for name, (f1, said) in rows.items()],
    )


def test_the_screen_has_scores_sizes_work_and_what_is_next():
    screen = Path(__file__).with_name("screen.txt").read_text(encoding="utf-8")
    assert said(main) == f"\n{screen}"


def test_a_short_run_is_called_one_and_what_did_not_happen_is_left_out(monkeypatch, tmp_path):
    write(artifacts.TRAIN_METRICS, {"steps": 199, "read": 6000})
    write(artifacts.FACTORIZE_METRICS, {"start_batches": 0, "start_read": 0})
    output = said(main)
    assert "\nshort run   below 200 steps, " in output
    assert "init  " not in output
    monkeypatch.setenv("DVC_ROOT", str(tmp_path.parent))
    assert "predict" in output
    assert "predict" not in said(main)  # nothing is next in a temporary copy


def test_a_model_without_a_head_is_not_said_to_have_one():
    assert "770 of the head trained" in said(main)
    assert "24,408 in artifacts/adapter, with the head\n" in said(main)
    counts = COUNTS | {"head_parameters": 0}
    write(artifacts.EVALUATE_METRICS, {"data": "movie-reviews"} | SCORES | F1 | counts)
    assert "\nparameters  4,716 of the adapter trained, 22,713,216 frozen\n" in said(main)
    assert "\nbytes       24,408 in artifacts/adapter\n" in said(main)


def test_the_title_of_a_table_is_one_line_in_a_terminal_however_narrow_the_table(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=screen, width=100, force_terminal=True, color_system=None))
    title = "multi-label: tokens of whole texts, truncated to 24"
    console.table(title, ["split"], [["train"]])
    assert screen.getvalue().splitlines()[0] == title


def test_a_class_that_no_answer_names_is_said():
    assert "unpredicted" not in said(main)
    classes(negative=(0.0, 0), positive=(0.66, 100))
    assert "\nunpredicted negative, but test has such texts\n" in said(main)
    classes(**{f"class{number}": (0.5, 9) for number in range(11)})
    assert "by class" not in said(main)


def test_git_without_a_name_is_told_how_to_get_one(monkeypatch, tmp_path):
    for name in IDENTITY:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert said(main).splitlines()[-1] == (
        "Git has no user.name or user.email, which `dvc exp run` needs: "
        "git config user.name 'Your Name' && git config user.email you@example.com"
    )


def test_the_screen_is_the_same_without_git_but_for_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in IDENTITY:
        monkeypatch.delenv(name)
    screen = Path(__file__).with_name("screen.txt").read_text(encoding="utf-8")
    assert said(main).startswith(f"\n{screen}Git has no user.name or user.email")


HINTS = [  # reports, changes of params.yaml, and the hint
    ({"losses": [0.5, 0.3, 0.4, 0.62]}, {"epochs": 4}, "validation loss rose from 0.3 after epoch 2 to 0.62: "
     "train.patience: 2 ends training that no longer improves the validation score"),
    ({"losses": [0.3, 0.4, 0.62]}, {"epochs": 3}, "validation loss rose from 0.3 after epoch 1 to 0.62: "
     "train.patience: 1 ends training that no longer improves the validation score"),
    ({"losses": [0.5], "negative": 190, "rare": 4, "odd": 6}, {}, "label more texts of rare 4, odd 6: "
     "below 10 training examples, a class is hardly learned"),
    ({"losses": [0.5], "a": 1, "b": 2, "c": 3, "d": 4, "e": 190}, {}, "label more texts of a 1, b 2, c 3 and 1 more: "),
    ({"losses": [0.5], "truncated": 0.032}, {}, "3.2% of the training texts have more than tokenize.max_length: 128 "
     "tokens and are truncated; 99 % have at most 190"),
    ({"losses": [0.5], "rows": 999}, {}, "999 training examples are few: train.refit: true then learns from the 500 of "
     "validation, too"),
]  # fmt: skip
NO_HINTS = [
    ({"losses": [0.5, 0.3, 0.31, 0.31]}, {"epochs": 4}),
    ({"losses": [0.5, 0.3, 0.62]}, {"epochs": 3}),  # one epoch later, any patience is too late
    ({"losses": [0.5, 0.3, 0.4, 0.62]}, {"epochs": 5, "patience": 2}),
    ({"losses": [0.5], "truncated": 0.0004, "first": 10, "second": 190}, {}),
    ({"losses": [0.5], "rows": 1000}, {}),
    ({"losses": [0.5], "rows": 999}, {"refit": True}),
]


@pytest.mark.parametrize(("run", "train", "hint"), HINTS)
def test_a_hint_says_what_the_reports_suggest_to_change(run, train, hint):
    change(train=train)
    reports(**run)
    assert f"hint {hint}" in " ".join(said(main).split())


def test_a_short_run_needs_more_steps_before_it_needs_the_examples_of_validation():
    reports([0.5], rows=999)
    assert "\nhint " in said(main)
    write(artifacts.TRAIN_METRICS, {"steps": 199, "read": 6000})
    assert "\nhint " not in said(main)


@pytest.mark.parametrize(("run", "train"), NO_HINTS)
def test_there_is_no_hint_without_a_reason(run, train):
    change(train=train)
    reports(**run)
    assert "\nhint " not in said(main)


DIFFERENCES = [  # an interval, and what the screen says of it
    ((0.1, 0.05, 0.15), "better than {} by 0.1 (95 %: 0.05 to 0.15)"),
    ((-0.1, -0.15, -0.05), "worse than {} by 0.1 (95 %: 0.05 to 0.15)"),
    ((0.02, -0.01, 0.05), "not better than {}: difference 0.02 (95 %: -0.01 to 0.05)"),
    ((-3.7e-17, -0.16, 0.16), "not better than {}: difference 0 (95 %: -0.16 to 0.16)"),
    ((0.0, 0.0, 0.0), "not better than {}: difference 0 (95 %: 0 to 0)"),
]


@pytest.mark.parametrize(("ends", "words"), DIFFERENCES)
def test_words_say_whether_a_run_is_better_than_the_constant_and_a_regression(ends, words):
    metrics = {"data": "movie-reviews"} | SCORES | F1 | COUNTS | {"accuracy_regression": 0.78}
    for baseline in ("baseline", "regression"):
        for end, value in zip(("", "_low", "_high"), ends, strict=True):
            metrics[f"accuracy_over_{baseline}{end}"] = value
    write(artifacts.EVALUATE_METRICS, metrics | {"regression_examples": 2048})
    screen = " ".join(said(main).split())
    assert f"constant {words.format('the constant baseline')}" in screen
    comma = "," if ends[1] > 0 or ends[2] < 0 else ""
    regression = f"a regression on the frozen model, 0.78{comma}"
    assert f"regression {words.format(regression)}" in screen


def test_nothing_to_show_is_one_line():
    artifacts.EVALUATE_METRICS.unlink()
    refused(main, [], says="reports/evaluate/metrics.json: not found; run dvc repro first")
    write(artifacts.EVALUATE_METRICS, {"data": "cola"})
    refused(main, [], says="params.yaml: data is movie-reviews, but the last run read cola; run dvc repro first")


def test_values_that_differ_from_the_last_commit_are_listed_with_what_undoes_them():
    git("init", "--quiet")
    assert "edited" not in said(main)  # nothing is committed yet
    git("add", "params.yaml")
    git("-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--message", "First")
    assert "edited" not in said(main)
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(f"# a comment\n{text}", encoding="utf-8")
    assert "edited" not in said(main)  # values are compared, not lines
    change(seed=3, lora={"r": 16}, mine={"type": "LOHA", "learning_rate": 0.1}, train={"report_to": ["wandb"]})
    screen = said(main)
    listed = 'seed 0 -> 3, train.report_to [] -> ["wandb"], lora.r 8 -> 16, mine.learning_rate none -> 0.1, '
    listed += "mine.type none -> LOHA; these stay in params.yaml, and later runs use them"
    assert f"edited {listed} to undo git checkout HEAD params.yaml" in " ".join(screen.split())
    assert all(len(line) <= 100 for line in screen.splitlines())
    change(lsr={"alpha": 1}, tokenize={"max_length": 9}, evaluate={"resamples": 100, "batch_size": 1})
    assert " and 3 more; these stay in" in " ".join(said(main).split())
    git("checkout", "--quiet", "HEAD", "params.yaml")
    assert "edited" not in said(main)
    screen = Path(__file__).with_name("screen.txt").read_text(encoding="utf-8")
    assert said(main) == f"\n{screen}"


def git(*words):
    subprocess.run(["git", *words], check=True)


def test_a_difference_that_every_resample_has_is_no_verdict():
    of_one_example = Difference(-1.0, -1.0, -1.0)
    line = of_one_example.describe("the most frequent class")
    assert line == "next to the most frequent class: difference -1 (no interval: every resample scores the same)"
    equal = Difference(0.0, 0.0, 0.0)
    assert equal.describe("it") == "not better than it: difference 0 (95 %: 0 to 0)"
