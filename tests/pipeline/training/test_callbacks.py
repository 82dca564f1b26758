"""A run can be watched, and one whose losses are no numbers ends in one line."""

import math

import pytest
from transformers import TrainerState

from pipeline.core.errors import UserError
from pipeline.training.callbacks import Progress, StopAtDivergence

STATE = TrainerState(global_step=7)


@pytest.mark.parametrize(
    ("key", "words", "value"),
    [
        ("loss", "the loss", math.nan),
        ("eval_loss", "the validation loss", math.inf),
        ("train_loss", "the mean loss", -math.inf),
    ],
)
def test_every_loss_that_is_logged_is_looked_at(key, words, value):
    others = {"loss": 0.5, "eval_loss": 0.5, "grad_norm": 1.0}
    with pytest.raises(UserError) as error:
        StopAtDivergence().on_log(None, STATE, None, logs={**others, key: value})
    assert str(error.value) == f"train: {words} is {value} after 7 steps: lower the learning rate"
    StopAtDivergence().on_log(None, STATE, None, logs=others)
    StopAtDivergence().on_log(None, STATE, None)


def test_the_bar_is_told_loss_and_learning_rate_and_of_no_other_log():
    told = []
    progress = Progress(lambda done, note="": told.append((done, note)))
    progress.on_step_end(None, STATE, None)
    progress.on_log(None, STATE, None, logs={"loss": 0.512345, "learning_rate": 0.00123456, "grad_norm": 1.0})
    progress.on_log(None, STATE, None, logs={"eval_loss": 0.5, "eval_score": 0.9})
    progress.on_log(None, STATE, None)
    assert told == [(1, ""), (0, "loss 0.512, lr 0.00123")]
