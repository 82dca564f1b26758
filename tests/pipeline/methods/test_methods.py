"""Every method on a tiny model: it starts as it says, and is saved, loaded and counted."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.data import base_models
from pipeline.methods import adapters, device
from pipeline.methods.kadaptation import KAdaptationLinear
from pipeline.params.reading import changed
from tests import workspace
from tests.kit import refused, write
from tests.stages.running import added, base_model, logits

LAYERS, WIDTH = 4, 24  # query and value of two layers
TRAINED = {  # numbers of the adapter in this workspace, from the formulas of the methods
    "lsr": 2 * 2 * 2 * (4 + 6) * LAYERS,
    "lora": 8 * 2 * WIDTH * LAYERS,
    "full": 19_472,
    "head": 0,
    "krona": (4 * 4 + 6 * 6) * LAYERS,
    "kadaptation": 8**3 + 2 * WIDTH * LAYERS,
    "vera": (16 + WIDTH) * LAYERS,
    "vblora": 9 * 8 + 4 * 2 * 3 * 9 * LAYERS,
    "unilora": 50,
    "directions": 12,
    "ia3": 2 * (24 + 24 + 24 + 40),  # PEFT's: keys, values, and what goes into both layers that end so
    "bitfit": 24 + 2 * (7 * 24 + 40),
    "ln_tuning": 2 * 24 * (2 * 2 + 1),
    "peft": 2 * WIDTH * LAYERS,
}
FORMS = ("lsr", "lora", "full", "head", "kadaptation", "bitfit", "vera")  # one for each way of storing an adapter
RANDOM = {"vblora", "unilora"}  # whose authors start with a small update that is not zero


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A workspace as the working folder."""
    folder = workspace.make(tmp_path_factory.mktemp("methods"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = base_model(params.load(params.TrainView))
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield


def seen(view, word, overrides=None):
    """What a stage sees of params.yaml where a section is chosen."""
    return changed({"adapter": word, **(overrides or {})}, view)


@pytest.mark.parametrize("word", TRAINED)
def test_a_fresh_adapter_is_counted_saved_and_loaded(word, tmp_path):
    view = seen(params.TrainView, word)
    base = logits(base_model(view))
    model = added(base_model(view), view.section, view.base_model, view.seed)
    if word in RANDOM:
        assert 0 < (logits(model) - base).abs().max() < 0.05
    else:
        assert torch.equal(logits(model), base)
    counts = adapters.count_parameters(model, view.base_model)
    assert counts["adapter_trained"] == TRAINED[word]
    adapters.save_adapter(model, tmp_path, view.base_model)
    saved = load_file(tmp_path / WEIGHTS)
    twice = 24 + 2 if word == "bitfit" else 0  # PEFT's `bias: all` saves those of the head and of the one it replaces
    assert counts["adapter_stored"] + counts["head_parameters"] + 2 * twice == sum(
        map(torch.Tensor.numel, saved.values())
    )
    loaded = adapters.load_adapter(base_model(view), tmp_path, trainable=False)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(tensor.is_meta for tensor in loaded.parameters())
    if word in FORMS:
        check_file(tmp_path, saved, lambda: adapters.load_adapter(base_model(view), tmp_path, trainable=False))


def check_file(folder, whole, load):
    """A file must hold all tensors of its method and no others; PEFT would load it without a word."""
    for name in (min(whole), max(whole)):
        write(folder / WEIGHTS, {key: tensor for key, tensor in whole.items() if key != name})
        assert "missing" in refused(load, says=name.removesuffix(".weight").rpartition(".")[2]).lower()
    write(folder / WEIGHTS, whole | {name: torch.cat([whole[name]] * 2)})
    refused(load, says=str(folder))
    write(folder / WEIGHTS, whole | {"more": torch.zeros(2, 2)})
    refused(load, says="more is no part of this adapter on this base model")


def test_the_update_of_kadaptation_is_the_sum_of_kronecker_products():
    view = seen(params.TrainView, "kadaptation")
    model = added(base_model(view), view.section, view.base_model)
    layers = [module for module in model.modules() if isinstance(module, KAdaptationLinear)]
    assert len(layers) == LAYERS
    for layer in layers:
        s, u, v = (factor.data.normal_() for factor in layer.factors("default"))
        expected = sum(torch.kron(s[k], u[k] @ v[k]) for k in range(len(s)))
        assert torch.allclose(layer.get_delta_weight("default"), expected, atol=1e-4)


META = torch.device("meta")


def devices(model):
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("word", ["lsr", "vera", "full"])
def test_an_adapter_is_loaded_to_the_device_of_its_base_and_moves_as_a_whole(word, tmp_path, monkeypatch):
    """Seen without an accelerator, on a stand-in for one."""
    view = seen(params.TrainView, word)
    adapters.save_adapter(added(base_model(view), view.section, view.base_model), tmp_path, view.base_model)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: META)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: str(META))
    monkeypatch.setattr("peft.utils.save_and_load.infer_device", lambda: str(META))
    model = adapters.load_adapter(base_model(view), tmp_path, trainable=True)
    assert devices(model) == {torch.device("cpu")}
    assert devices(device.place(model)) == {META}
