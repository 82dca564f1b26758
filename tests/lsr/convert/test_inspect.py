"""The report of an adapter agrees with dense matrices, and needs the base model only where nothing else will do."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import export_lora
from lsr.convert.inspect import inspect_adapter
from lsr.tuner.linear import adapted_layers
from tests.lsr.saved import CASES, FOLDED, entries, save


@pytest.fixture(scope="module", params=CASES)
def known(request, tmp_path_factory):
    """A case, its model, its folder and its report."""
    name, fields = CASES[request.param]
    folder = tmp_path_factory.mktemp("known")
    return request.param, save(name, folder, **fields), folder, inspect_adapter(folder / "adapter")


def test_norms_and_singular_values_are_those_of_the_dense_update(known):
    _, model, _, found = known
    assert found.base_problem is None
    layers = adapted_layers(model)
    assert found.layers.keys() == layers.keys()
    for name, layer in layers.items():
        update = layer.get_delta_weight("default").detach().double()
        shown = found.layers[name]
        assert shown.norm == pytest.approx(float(update.norm()), rel=1e-5)
        weight = float(layer.pretrained_weight().double().norm())
        assert shown.relative_norm == pytest.approx(float(update.norm()) / weight, rel=1e-5)
        expected = torch.linalg.svdvals(update)[: shown.lora_rank]
        values = torch.tensor(shown.singular_values, dtype=torch.float64)
        assert_close(values[: len(expected)], expected, atol=1e-6 * shown.norm, rtol=1e-5)


def test_sizes_are_those_of_the_layers_and_of_the_exported_lora(known, tmp_path):
    case, model, folder, found = known
    export_lora(model, tmp_path / "lora")
    lora, adapter = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "lora", folder / "adapter"))
    reports = found.layers.values()
    assert sum(t.numel() for n, t in lora.items() if ".lora_" in n) == sum(r.lora_parameters for r in reports)
    assert sum(entries(t) for n, t in adapter.items() if ".lsr_" in n) == sum(r.stored for r in reports)
    assert sum(t.numel() for n, t in adapter.items() if ".lsr_" not in n) == found.other_parameters
    for name, layer in adapted_layers(model).items():
        sizes, shown = layer.sizes("default"), found.layers[name]
        assert (shown.trained, shown.stored, shown.effective) == (sizes.trained, sizes.stored, sizes.effective)
        assert shown.lora_rank == shown.rank * (2 if case in FOLDED else 1)


def test_without_its_base_it_says_the_same_but_for_the_norm_of_the_weight(known):
    _, _, folder, with_base = known
    (folder / "base").rename(folder / "elsewhere")
    found = inspect_adapter(folder / "adapter")
    (folder / "elsewhere").rename(folder / "base")
    assert "cannot be loaded" in found.base_problem or "no such folder" in found.base_problem
    assert found.layers == {name: replace(layer, relative_norm=None) for name, layer in with_base.layers.items()}
    assert found.other_parameters == with_base.other_parameters
