"""What logits answer, and what is said of it."""

import numpy as np
import pytest
import torch

from pipeline import tasks
from pipeline.tasks import Outcome
from tests.pipeline.data.rows import NUMBER, SPLITS, row_of

FILES = dict.fromkeys(SPLITS, "a.jsonl")
CHOICES = tasks.of(row_of(FILES, text=["{choice}"], choices=["bad", "good"]))
RATING = tasks.of(row_of(FILES, NUMBER))


def test_choices_are_answers_to_questions_and_classes_of_examples():
    logits = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0]])
    outcome = Outcome(logits, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    predicted, labels, _ = CHOICES.answers(outcome)
    assert (predicted.tolist(), labels.tolist()) == ([1, 0], [1, 1])
    expected = ["wrong", "right", "right", "wrong"]  # not what each would be by itself
    assert CHOICES.table(outcome)["predicted"] == expected
    metrics = CHOICES.metrics(outcome, 100)
    assert (metrics["accuracy"], metrics["accuracy_baseline"]) == (0.5, 1.0)
    assert metrics["accuracy_low"] == pytest.approx(0.01258, abs=1e-5)  # 1 of 2 questions, not 2 of 4 examples


def test_a_score_stands_beside_what_one_answer_for_all_has():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    task = tasks.of(row_of(FILES, metrics=["accuracy", "f1", "matthews_correlation"]))
    metrics = task.metrics(Outcome(logits, np.array([0, 1, 1, 0])), 100)
    assert metrics["accuracy"] == 0.75
    assert (metrics["accuracy_baseline"], metrics["f1_baseline"]) == (0.5, 0.0)
    assert metrics["matthews_correlation_baseline"] == 0.0
    assert metrics["loss_baseline"] == pytest.approx(np.log(2))


def test_the_baseline_of_a_number_is_the_mean():
    metrics = RATING.metrics(Outcome(torch.tensor([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 5.0])), 100)
    assert (metrics["pearson_baseline"], metrics["loss_baseline"]) == (0.0, pytest.approx(8 / 3))
