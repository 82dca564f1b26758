"""What LSR adds to different adapters for the rows of one batch; that each passes through its own is a probe."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig
from tests.capabilities.checks import stir
from tests.capabilities.models import logits, tiny, tokens
from tests.kit import refused

USUAL = {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0, "init_weights": False}
NAMES = ("second", "__base__", "default", "second")


@pytest.fixture
def model():
    model = get_peft_model(tiny("bert"), LsrConfig(**USUAL, modules_to_save=["classifier"]))
    model.add_adapter("second", LsrConfig(**{**USUAL, "rank_shape": (2, 1), "separation_rank": 2, "seed": 1}))
    return stir(model).eval()


def in_one_batch(model, names=NAMES):
    with torch.no_grad():
        return model(**tokens(), adapter_names=list(names)).logits


def test_heads_that_were_trained_whole_go_with_their_adapter(model):
    row = in_one_batch(model, ["__base__", "__base__", "default", "__base__"])[2]
    assert_close(row, logits(model)[2])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["default", "secnod", "default", "default"], "no adapter is named 'secnod'; there are ['default', 'second']"),
        (["default"], "adapter_names must hold one name per row of the batch, 4, got 1"),
        ([], "adapter_names must hold one name per row of the batch, 4, got 0"),
    ],
)
def test_wrong_names_are_refused_and_leave_the_model_usable(names, says, model):
    before = logits(model)
    refused(in_one_batch, model, names, kind=ValueError, says=says)
    assert torch.equal(logits(model), before)


def test_rows_do_not_mix_in_training_or_merged(model):
    says = "adapter_names is for evaluation only: call eval()"
    refused(in_one_batch, model.train(), kind=ValueError, says=says)
    model.eval().merge_adapter()
    says = "adapters are merged into the base weights; call unmerge_adapter() first"
    refused(in_one_batch, model, kind=ValueError, says=says)
