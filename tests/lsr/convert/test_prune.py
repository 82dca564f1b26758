"""A pruned adapter is the nearest one found, in every form that an adapter can have."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from benchmarks.capabilities.models import logits
from lsr import prune_adapter
from lsr.convert.files import CONFIG, WEIGHTS, InputError
from lsr.convert.loading import load_adapter
from lsr.tuner.linear import adapted_layers
from tests.lsr import fits
from tests.lsr.distances import check_certificate
from tests.lsr.saved import CASES, FOLDED, SPLIT, save

pytestmark = pytest.mark.usefixtures("remembered_fits")

each_case = pytest.mark.parametrize("case", SPLIT)
DIFFERENT = ["a head of one layer", "padded widths", "three factors", "folded and transposed", "folded and padded"]
assert set(DIFFERENT) <= set(SPLIT)


def pruned(case, folder, **options):
    name, fields = CASES[case]
    model = save(name, folder, **fields)
    certificate = prune_adapter(folder / "adapter", folder / "pruned", **options)
    return model, certificate, load_adapter(folder / "pruned")


@pytest.mark.parametrize(
    ("case", "options"),
    [
        *((case, {"separation_rank": 2}) for case in SPLIT),
        *((case, options) for case in DIFFERENT for options in ({"separation_rank": 1}, {"error": 0.5})),
    ],
)
def test_certificates_are_distances_of_the_loaded_models(case, options, tmp_path):
    model, certificate, loaded = pruned(case, tmp_path, **options)
    check_certificate(certificate, model, loaded, options.get("error", 1))
    for name, shown in certificate.layers.items():
        assert shown.separation_rank == adapted_layers(loaded)[name].adapter("default").form.separation_rank
        assert shown.separation_rank <= options.get("separation_rank", 6)


@each_case
def test_the_file_holds_the_heads_and_what_is_counted(case, tmp_path):
    model, certificate, _ = pruned(case, tmp_path, separation_rank=1)
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "pruned"))
    kept = {name: value for name, value in before.items() if ".lsr_" not in name}
    assert kept.keys() == {name for name in after if ".lsr_" not in name}
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    counts = [sum(value.numel() for name, value in tensors.items() if ".lsr_" in name) for tensors in (before, after)]
    shown = certificate.layers.values()
    assert counts == [sum(layer.parameters_before for layer in shown), sum(layer.parameters for layer in shown)]
    assert len(adapted_layers(model)) == len(shown)


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_tiny_error_keeps_what_the_adapter_says(case, tmp_path):
    model, certificate, loaded = pruned(case, tmp_path, error=1e-4)
    assert certificate.error <= 1e-4
    assert (certificate.error > 0) == (case in FOLDED)  # there is no other file to copy
    assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def test_nothing_of_the_start_is_needed_any_more(tmp_path):
    _, _, loaded = pruned("folded", tmp_path, separation_rank=2)
    config = loaded.peft_config["default"]
    assert (config.init_weights, config.train, config.resolved.base_hashes) == (True, "factors", {})
    assert config.rank_shape == (4, 2)
    for layer in adapted_layers(loaded).values():
        assert layer.adapter("default").form.in_shape == (6, 4)  # as before, though the rank is another


def test_a_layer_with_few_terms_stays_as_it_is(tmp_path):
    model, certificate, _ = pruned("patterns", tmp_path, separation_rank=2)
    for name, layer in adapted_layers(model).items():
        shown = certificate.layers[name]
        assert (shown.error == 0) == (layer.adapter("default").form.separation_rank <= 2)
        assert shown.separation_rank == min(2, layer.adapter("default").form.separation_rank)


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    save("bert", tmp_path)
    for name in ("one", "two"):
        fits.forget()
        prune_adapter(tmp_path / "adapter", tmp_path / name, separation_rank=2)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("case", sorted(CASES.keys() - set(SPLIT)))
def test_dense_sides_and_cores_have_no_terms_to_drop(case, tmp_path):
    name, fields = CASES[case]
    save(name, tmp_path, **fields)
    with pytest.raises(InputError, match=r"adapter: has no Kronecker terms to drop, or has a core") as found:
        prune_adapter(tmp_path / "adapter", tmp_path / "pruned", error=0.5)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--separation-rank or --error is needed, or both"),
        ({"separation_rank": -1}, "--separation-rank must be >= 1, got -1"),
        ({"separation_rank": 3}, "--separation-rank must be below 3, the most terms of a layer, got 3"),
        ({"error": -0.1}, r"--error must be a number in \(0, 1\), got -0.1"),
        (
            {"error": 1e-3, "separation_rank": 1},
            r"the error 0.001 is out of reach: rank \[2, 2\] with 1 terms leaves 0",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(options, message, tmp_path):
    save("bert", tmp_path)
    with pytest.raises(InputError, match=message):
        prune_adapter(tmp_path / "adapter", tmp_path / "pruned", **options)
    assert not (tmp_path / "pruned").exists()
