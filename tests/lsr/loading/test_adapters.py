"""An adapter's folder comes back as what was saved; what else it may hold: tests/test_damaged.py."""

import pytest
import torch
from torch.testing import assert_close

from lsr.init import INITIALIZATIONS
from lsr.loading.adapters import load_adapter
from lsr.loading.contents import read_contents
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits
from tests.lsr.saved import CASES, save


def adapter_state(adapter):
    return {name: value for name, value in adapter.state_dict().items() if value is not None}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit_and_nothing_is_decomposed(case, tmp_path, monkeypatch):
    name, fields = CASES[case]
    model = save(name, tmp_path, **fields)
    for word, one in INITIALIZATIONS.items():
        monkeypatch.setitem(INITIALIZATIONS, word, one._replace(start=None))  # not to be called
    loaded = load_adapter(tmp_path / "adapter")
    updates = read_contents(tmp_path / "adapter", with_biases=True).updates
    assert torch.equal(logits(loaded), logits(model))
    found = adapted_layers(loaded)
    for layer_name, layer in adapted_layers(model).items():
        state = adapter_state(layer.adapter("default"))
        again = adapter_state(found[layer_name].adapter("default"))
        assert again.keys() == state.keys()
        assert all(torch.equal(value, again[key]) for key, value in state.items())
        assert found[layer_name].adapter("default").form == layer.adapter("default").form
        left, right = updates[layer_name].product()
        assert_close(left @ right, layer.adapter("default").update().double(), atol=1e-7, rtol=1e-5)
