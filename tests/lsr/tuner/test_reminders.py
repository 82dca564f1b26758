"""What is warned of once: examples that never came."""

import warnings

import torch
from peft import get_peft_model

from lsr import LsrConfig
from tests.capabilities.models import tiny

GRADIENT = {"rank_shape": (2,), "train": "core", "init_weights": "gradient", "target_modules": ["query", "value"]}
IDS = torch.arange(12).reshape(2, 6)


def said(action, about):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in found if about in str(one.message)]


def made(**fields):
    return get_peft_model(tiny("bert"), LsrConfig(**{"seed": 0, **fields}))


def test_training_without_them_is_warned_of_once():
    model = made(**GRADIENT).train()
    assert len(said(lambda: model(input_ids=IDS), "has been given none")) == 1
    assert said(lambda: model(input_ids=IDS), "has been given none") == []
