"""What LSR adds to different adapters for the rows of one batch; that each passes through its own is a probe."""

import pytest
import torch
from torch.testing import assert_close

from tests.capabilities.models import logits, tokens
from tests.capabilities.subjects import Subject
from tests.kit import refused

NAMES = ["second", "__base__", "default", "second"]


@pytest.fixture
def model():
    return Subject("bert").with_two()


def in_one_batch(model, names):
    with torch.no_grad():
        return model(**tokens(), adapter_names=names).logits


def test_heads_that_were_trained_whole_go_with_their_adapter(model):
    row = in_one_batch(model, ["__base__", "__base__", "default", "__base__"])[2]
    assert_close(row, logits(model)[2])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["default", "secnod", "default", "default"], "no adapter is named 'secnod'; there are ['default', 'second']"),
        ([], "adapter_names must hold one name per row of the batch, 4, got 0"),
    ],
)
def test_wrong_names_are_refused_and_leave_the_model_usable(names, says, model):
    before = logits(model)
    refused(in_one_batch, model, names, kind=ValueError, says=says)
    assert torch.equal(logits(model), before)


def test_rows_do_not_mix_in_training_or_merged(model):
    says = "adapter_names is for evaluation only: call eval()"
    refused(in_one_batch, model.train(), NAMES, kind=ValueError, says=says)
    model.eval().merge_adapter()
    says = "adapters are merged into the base weights; call unmerge_adapter() first"
    refused(in_one_batch, model, NAMES, kind=ValueError, says=says)
