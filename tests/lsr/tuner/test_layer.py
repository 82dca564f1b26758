import re

import pytest

from tests.lsr.layers import adapt, base, config

# The shapes


def test_too_many_terms_are_refused_with_the_most_and_the_layer():
    message = (
        "layer 'encoder.query': separation_rank must be in [1, 4] for 4 x 6 as [2, 2] x [3, 2] and "
        "rank_shape [2, 2], got 9"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        adapt(base(6, 4), "encoder.query", separation_rank=9)


# How the factors are initialized


@pytest.mark.parametrize(("value", "said"), [(0.0, "nothing to fit"), (float("nan"), "expected a finite matrix")])
def test_a_weight_that_cannot_be_fitted_is_refused_by_name(value, said):
    layer = adapt(base(6, 4), "encoder.query")
    layer.weight.data.fill_(value)
    with pytest.raises(ValueError, match=f"layer 'encoder.query': {said}"):
        layer.initialize("default", config(init_weights="principal"))
