"""An adapter's folder comes back as what was saved, and what does not fit is one clear line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsr.convert.files import CONFIG, WEIGHTS, InputError
from lsr.convert.inspect import inspect_adapter
from lsr.convert.loading import load_adapter, load_layers
from lsr.init import INITIALIZATIONS
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits, tiny
from tests.lsr.saved import CASES, save

pytestmark = pytest.mark.usefixtures("remembered_fits")

READERS = {"load_adapter": load_adapter, "load_layers": load_layers, "inspect_adapter": inspect_adapter}
each_case = pytest.mark.parametrize("case", CASES)
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
QUERY = "bert.encoder.layer.0.attention.self.query"
SHAPES = {"out_features": 24, "in_features": 24, "out_shape": [6, 4], "in_shape": [6, 4]}
BROKEN = {  # what is wrong with `resolved`: what it is
    "a word": "usual",
    "a list": [1, 2],
    "nothing": {},
    "no hashes": {"usual": SHAPES, "others": {}},
    "no shapes": {"usual": {}, "others": {}, "base_hashes": {}},
    "a shape that is none": {"usual": {**SHAPES, "in_shape": 24}, "others": {}, "base_hashes": {}},
    "sizes that are words": {"usual": {**SHAPES, "in_shape": ["six", "four"]}, "others": {}, "base_hashes": {}},
    "a negative size": {"usual": {**SHAPES, "in_shape": [-6, -4]}, "others": {}, "base_hashes": {}},
    "no size": {"usual": {**SHAPES, "in_shape": []}, "others": {}, "base_hashes": {}},
    "shapes below the width": {"usual": {**SHAPES, "out_shape": [2, 2]}, "others": {}, "base_hashes": {}},
    "a broken layer": {"usual": SHAPES, "others": {QUERY: 3}, "base_hashes": {}},
}


def saved(case, folder):
    name, fields = CASES[case]
    return save(name, folder, **fields)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A plain adapter beside its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("original")
    saved("a head of one layer", folder)
    return folder / "adapter"


@pytest.fixture
def plain(original, tmp_path):
    """A copy of it, on the same base."""
    return Path(shutil.copytree(original, tmp_path / "adapter"))


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def adapter_state(adapter):
    return {name: value for name, value in adapter.state_dict().items() if value is not None}


@each_case
def test_an_adapter_comes_back_bit_for_bit_and_nothing_is_decomposed(case, tmp_path, monkeypatch):
    model = saved(case, tmp_path)
    for word, one in INITIALIZATIONS.items():
        monkeypatch.setitem(INITIALIZATIONS, word, one._replace(start=None))  # not to be called
    loaded, alone = load_adapter(tmp_path / "adapter"), load_layers(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    found = adapted_layers(loaded)
    for name, layer in adapted_layers(model).items():
        state = adapter_state(layer.adapter("default"))
        for other in (found[name], alone[name]):
            again = adapter_state(other.adapter("default"))
            assert again.keys() == state.keys()
            assert all(torch.equal(value, again[key]) for key, value in state.items())
            assert other.adapter("default").form == layer.adapter("default").form


@pytest.mark.parametrize("case", ["padded widths", "folded", "patterns", "own shapes"])
def test_the_layers_do_not_depend_on_how_a_width_is_split(case, tmp_path, monkeypatch):
    model = saved(case, tmp_path)
    monkeypatch.setattr("lsr.tuner.layer.split_width", lambda width, rank_shape: (width, *rank_shape[1:]))
    assert torch.equal(logits(load_adapter(tmp_path / "adapter")), logits(model))
    forms = {name: layer.adapter("default").form for name, layer in adapted_layers(model).items()}
    assert {n: layer.adapter("default").form for n, layer in load_layers(tmp_path / "adapter").items()} == forms


def test_an_adapter_for_another_width_is_refused_with_both(tmp_path):
    saved("a head of one layer", tmp_path)
    tiny("bert-padded").save_pretrained(str(tmp_path / "base"))
    with pytest.raises(InputError, match=rf"'{QUERY}': the adapter is for a layer of 24 x 24, and this one is 62 x 62"):
        load_adapter(tmp_path / "adapter")


def test_an_adapter_of_another_padded_width_is_refused_though_its_factors_fit(tmp_path):
    saved("padded widths", tmp_path)
    path = tmp_path / "adapter"
    resolved = json.loads((path / CONFIG).read_text())["resolved"]
    resolved["others"][QUERY] = {**resolved["usual"], "in_features": 61}  # 9 * 7 holds it as well
    edit(path, resolved=resolved)
    with pytest.raises(InputError, match=rf"'{QUERY}': the adapter is for a layer of 62 x 61, and this one is 62 x 62"):
        load_adapter(path)


def test_a_folded_start_on_another_base_is_refused_in_one_line(tmp_path):
    saved("folded", tmp_path)
    other = load_file(tmp_path / "base/model.safetensors")
    other[f"{QUERY}.weight"][0, 0] += 1e-6
    save_file(other, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"this is not the base model .* has another hash$"):
        load_adapter(tmp_path / "adapter")


@each_reader
@pytest.mark.parametrize("resolved", BROKEN.values(), ids=BROKEN)
def test_broken_shapes_are_one_line(resolved, read, plain):
    edit(plain, resolved=resolved)
    with pytest.raises(InputError, match=rf"{CONFIG}: resolved: not what a saved adapter says of its layers") as raised:
        read(plain)
    assert "\n" not in str(raised.value)


@each_reader
def test_a_file_without_shapes_is_refused(read, plain):
    edit(plain, resolved=None)
    with pytest.raises(InputError, match="resolved: the configuration does not contain the shapes of the layers"):
        read(plain)


@each_reader
@pytest.mark.parametrize(
    ("case", "gone"),
    [("a head of one layer", "factor_B2"), ("first factors trained", "factor_A2"), ("folded", "start_A1")],
)
def test_a_missing_factor_is_named(case, gone, read, tmp_path):
    saved(case, tmp_path)
    path = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith(gone))]
    save_file(tensors, path)
    with pytest.raises(
        InputError, match=rf"do not fit together: layer '{QUERY}': lsr_adapters\.default\.{gone} is missing"
    ):
        read(tmp_path / "adapter")
