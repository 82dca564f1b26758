"""What LSR adds to different adapters for the rows of one batch; that each passes through its own is a probe."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig
from tests.capabilities.models import logits, tiny, tokens

USUAL = {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0, "init_weights": False}


def with_two(name="bert", **fields):
    model = get_peft_model(tiny(name), LsrConfig(**{**USUAL, **fields}))
    model.add_adapter("second", LsrConfig(**{**USUAL, "rank_shape": (2, 1), "separation_rank": 2, "seed": 1}))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 3:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def in_one_batch(model, names=("second", "__base__", "default", "second")):
    with torch.no_grad():
        return model(**tokens(), adapter_names=list(names)).logits


def test_heads_that_were_trained_whole_go_with_their_adapter():
    model = with_two(modules_to_save=["classifier"])
    model.base_model.model.classifier.modules_to_save["default"].bias.data += 1
    (row,) = in_one_batch(model, ["__base__", "__base__", "default", "__base__"])[2:3]
    assert_close(row, logits(model)[2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["default", "secnod", "default", "default"],
            r"no adapter is named 'secnod'; there are \['default', 'second'\]",
        ),
        (["default"], "adapter_names must hold one name per row of the batch, 4, got 1"),
        ([], "adapter_names must hold one name per row of the batch, 4, got 0"),
    ],
)
def test_wrong_names_are_refused_and_leave_the_model_usable(names, message):
    model = with_two()
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        in_one_batch(model, names)
    assert torch.equal(logits(model), before)


def test_training_with_mixed_rows_is_refused():
    with pytest.raises(ValueError, match=r"adapter_names is for evaluation only: call eval\(\)"):
        in_one_batch(with_two().train())


def test_merged_adapters_do_not_mix():
    model = with_two()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"adapters are merged into the base weights; call unmerge_adapter\(\) first"):
        in_one_batch(model)
