"""The report of an adapter agrees with dense matrices, and needs the base model only where nothing else will do."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import export_lora
from lsr.algebra.precision import ROUNDOFF, TOLERATED_LOSS
from lsr.convert.inspect import inspect_adapter, inspect_layer, shared_prefix
from lsr.loading.files import InputError
from lsr.tuner.linear import adapted_layers
from tests.lsr.saved import CASES, FOLDED, entries, save

pytestmark = pytest.mark.usefixtures("remembered_fits")


def report(case, folder, base=None):
    name, fields = CASES[case]
    return save(name, folder, **fields), inspect_adapter(folder / "adapter", base)


def forget_base(folder):
    (folder / "base").rename(folder / "elsewhere")


@pytest.mark.parametrize("case", CASES)
def test_norms_and_singular_values_are_those_of_the_dense_update(case, tmp_path):
    model, found = report(case, tmp_path)
    assert found.base_problem is None
    layers = adapted_layers(model)
    assert found.layers.keys() == layers.keys()
    for name, layer in layers.items():
        update = layer.get_delta_weight("default").detach().double()
        shown = found.layers[name]
        assert shown.norm == pytest.approx(float(update.norm()), rel=1e-5)
        assert shown.relative_norm == pytest.approx(
            float(update.norm() / layer.pretrained_weight().double().norm()), rel=1e-5
        )
        expected = torch.linalg.svdvals(update)[: shown.lora_rank]
        values = torch.tensor(shown.singular_values, dtype=torch.float64)
        assert_close(values[: len(expected)], expected, atol=1e-6 * shown.norm, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_those_of_the_layers_and_of_the_exported_lora(case, tmp_path):
    model, found = report(case, tmp_path)
    export_lora(model, tmp_path / "lora")
    lora, adapter = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "adapter"))
    assert sum(t.numel() for n, t in lora.items() if ".lora_" in n) == sum(
        r.lora_parameters for r in found.layers.values()
    )
    assert sum(entries(t) for n, t in adapter.items() if ".lsr_" in n) == sum(r.stored for r in found.layers.values())
    assert sum(t.numel() for n, t in adapter.items() if ".lsr_" not in n) == found.other_parameters
    for name, layer in adapted_layers(model).items():
        sizes, shown = layer.sizes("default"), found.layers[name]
        assert (shown.trained, shown.stored, shown.effective) == (sizes.trained, sizes.stored, sizes.effective)
        assert shown.lora_rank == shown.rank * (2 if case in FOLDED else 1)


@pytest.mark.parametrize("case", CASES)
def test_without_its_base_it_says_the_same_but_for_the_norm_of_the_weight(case, tmp_path):
    _, known = report(case, tmp_path)
    forget_base(tmp_path)
    found = inspect_adapter(tmp_path / "adapter")
    assert "cannot be loaded" in found.base_problem or "no such folder" in found.base_problem
    assert found.layers == {name: replace(layer, relative_norm=None) for name, layer in known.layers.items()}
    assert found.other_parameters == known.other_parameters


def test_a_base_that_was_asked_for_must_be_there(tmp_path):
    report("a head of one layer", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        inspect_adapter(tmp_path / "adapter", str(tmp_path / "nowhere"))


def test_terms_that_cancel_are_warned_of(tmp_path):
    model = save("bert", tmp_path)
    layer = next(iter(adapted_layers(model).values()))
    calm = inspect_layer(layer)
    assert calm.unfit_dtypes == []
    first, second = (factor.data for factor in layer.adapter("default").factors()[0])
    first[1], second[1] = -first[0] * (1 + 1e-4), second[0]
    for factor in (first, second):
        factor[:2] *= 40
    found = inspect_layer(layer)
    assert found.condition_update > found.condition_a > 100
    assert "bfloat16" in found.unfit_dtypes
    assert "float32" not in found.unfit_dtypes
    assert found.losses["bfloat16"] == ROUNDOFF[torch.bfloat16] * found.condition_update > TOLERATED_LOSS


def test_an_update_near_its_subtracted_start_counts_as_cancellation(tmp_path):
    name, fields = CASES["folded"]
    model = save(name, tmp_path, **fields)
    layer = next(iter(adapted_layers(model).values()))
    far = inspect_layer(layer)
    adapter = layer.adapter("default")
    for side, start_side in zip(adapter.factors(), adapter.folded_factors(), strict=True):
        for factor, start in zip(side, start_side, strict=True):
            factor.data.copy_(start + 1e-2 * (factor.data - start))
    near = inspect_layer(layer)
    assert near.norm < 0.1 * far.norm
    assert near.condition_update > 10 * far.condition_update


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.b.0.q", "a.b.1.q"], "a.b."),
        (["a.b.q"], "a.b."),
        (["a.q", "b.q"], ""),
        (["a.b", "a.b.c"], "a."),
        ([], ""),
    ],
)
def test_a_shared_prefix_leaves_each_name_a_part(names, prefix):
    assert shared_prefix(dict.fromkeys(names)) == prefix
