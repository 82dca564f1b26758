"""An adapter's folder comes back as what was saved; what else it may hold: tests/test_damaged.py."""

import pytest
import torch

from lsr.init import INITIALIZATIONS
from lsr.loading.adapters import load_adapter
from lsr.loading.layers import load_layers
from lsr.tuner.files import read_files
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
    loaded, alone = load_adapter(tmp_path / "adapter"), load_layers(read_files(tmp_path / "adapter")).layers
    assert torch.equal(logits(loaded), logits(model))
    found = adapted_layers(loaded)
    for layer_name, layer in adapted_layers(model).items():
        state = adapter_state(layer.adapter("default"))
        for other in (found[layer_name], alone[layer_name]):
            again = adapter_state(other.adapter("default"))
            assert again.keys() == state.keys()
            assert all(torch.equal(value, again[key]) for key, value in state.items())
            assert other.adapter("default").form == layer.adapter("default").form
