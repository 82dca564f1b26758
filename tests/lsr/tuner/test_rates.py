"""The groups of an optimizer: each trainable parameter once, at the learning rate of its size."""

import pytest
import torch
from peft import get_peft_model

from lsr import LsrConfig, parameter_groups
from tests.capabilities.models import tiny

TERMS = 4
DENSE = {"rank_shape": (4,), "separation_rank": None}


def grouped(**fields):
    """A model, and the rate of each trainable parameter by its name."""
    model = get_peft_model(
        tiny("bert"),
        LsrConfig(**{"task_type": "SEQ_CLS", "rank_shape": (2, 2), "separation_rank": TERMS, "seed": 0, **fields}),
    )
    groups = parameter_groups(model, 0.004, 0.001)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [(names[id(parameter)], group["lr"]) for group in groups for parameter in group["params"]]
    assert len(listed) == len(dict(listed))
    return model, dict(listed)


@pytest.mark.parametrize("fields", [{}, {**DENSE, "train": "core"}, {**DENSE, "train": "all", "share": "layers"}])
def test_every_trainable_parameter_is_in_one_group(fields):
    model, rates = grouped(**fields)
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.optim.AdamW(parameter_groups(model))


def test_small_factors_turn_no_faster_than_others():
    rates = {name.rpartition(".")[2]: rate for name, rate in grouped()[1].items() if "lsr_" in name}
    assert rates == {"factor_A1": 0.004, "factor_A2": 0.002, "factor_B1": 0.004, "factor_B2": 0.002}
