"""A run whose losses or weights are no numbers ends in one line."""

import math

import pytest
import torch
from torch import nn
from transformers import TrainerState

from pipeline.errors import UserError
from pipeline.training.callbacks import StopAtDivergence

STATE = TrainerState(global_step=7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("key", "words"),
    [("loss", "the loss"), ("eval_loss", "the validation loss"), ("train_loss", "the mean loss")],
)
def test_every_loss_that_is_logged_is_looked_at(key, words, value):
    others = {"loss": 0.5, "eval_loss": 0.5, "grad_norm": 1.0}
    with pytest.raises(UserError) as error:
        StopAtDivergence().on_log(None, STATE, None, logs={**others, key: value})
    assert str(error.value) == f"train: {words} is {value} after 7 steps: lower the learning rate"
    StopAtDivergence().on_log(None, STATE, None, logs=others)
    StopAtDivergence().on_log(None, STATE, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_final_weights_are_looked_at(value):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    StopAtDivergence().on_train_end(None, STATE, None, model=model)
    with torch.no_grad():
        model[1].weight[1, 0] = value
    with pytest.raises(UserError) as error:
        StopAtDivergence().on_train_end(None, STATE, None, model=model)
    line = "train: 1.weight holds values that are not finite after 7 steps: lower the learning rate"
    assert str(error.value) == line
    model[1].weight.requires_grad_(False)  # the base model's own
    StopAtDivergence().on_train_end(None, STATE, None, model=model)
