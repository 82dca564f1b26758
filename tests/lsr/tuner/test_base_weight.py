import pytest
from torch import nn

from lsr.tuner.linear import LsrLinear


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 4), "it must be Linear or Conv1D, got Embedding"),
        (nn.Conv1d(4, 4, 1), "it must be Linear or Conv1D, got Conv1d"),
        (nn.MultiheadAttention(4, 2).out_proj, "nn.MultiheadAttention reads its weight but never calls it"),
    ],
    ids=["embedding", "convolution", "attention output"],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name_and_type(layer, reason):
    with pytest.raises(TypeError, match=f"layer 'block.part' cannot be adapted: {reason}"):
        LsrLinear(layer, "default", "block.part")
