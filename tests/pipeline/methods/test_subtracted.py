"""What PiSSA and OLoRA start with is subtracted from the very base weight, whoever loads the adapter."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.methods import adapters
from tests import workspace
from tests.stages.running import base_model, logits


@pytest.fixture(scope="module", params=["pissa", "olora"])
def made(tmp_path_factory, request):
    """A stirred adapter that starts so, with its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(
            workspace.make(tmp_path_factory.mktemp(request.param), adapter="lora", lora={"init": request.param})
        )
        view = params.load(params.TrainView)
        base = base_model(view)
        model = adapters.add_adapter(copy.deepcopy(base), view.section, view.base_model, 0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        folder = tmp_path_factory.mktemp("adapter") / "made"
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
        yield base, model, folder, view


def query(model):
    return model.get_base_model().roberta.encoder.layer[1].attention.self.query


def test_the_base_weight_is_bit_for_bit_what_it_was_and_no_decomposition_is_made_again(made, monkeypatch):
    base, model, folder, _ = made
    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr(torch.linalg, "qr", None)
    loaded = adapters.load_adapter(copy.deepcopy(base), folder, trainable=True)
    assert torch.equal(query(loaded).base_layer.weight, query(model).base_layer.weight)
    assert torch.equal(logits(loaded), logits(model))
    plain = query(base) if hasattr(base, "get_base_model") else base.roberta.encoder.layer[1].attention.self.query
    start = query(loaded).lora_start["default"]
    scaling = query(loaded).scaling["default"]
    assert torch.allclose(query(loaded).base_layer.weight + scaling * start.B @ start.A, plain.weight, atol=1e-6)


def test_an_adapter_that_is_saved_again_says_the_same(made, tmp_path):
    base, _, folder, view = made
    loaded = adapters.load_adapter(copy.deepcopy(base), folder, trainable=True)
    adapters.save_adapter(loaded, tmp_path, view.base_model)
    first, again = (load_file(path / adapters.WEIGHTS) for path in (folder, tmp_path))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (
        adapters.load_adapter(copy.deepcopy(base), tmp_path, trainable=False).peft_config["default"].init_lora_weights
    )


@pytest.mark.parametrize("change", ["is missing", "but the adapter says"])
def test_a_start_that_is_not_whole_is_refused(made, tmp_path, change):
    base, _, folder, _ = made
    copied = shutil.copytree(folder, tmp_path / "copied")
    tensors = load_file(copied / adapters.WEIGHTS)
    name = next(name for name in tensors if name.endswith("query.lora_start.B"))
    if change == "is missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(1, 1)
    save_file(tensors, copied / adapters.WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name}.*{change}"):
        adapters.load_adapter(copy.deepcopy(base), copied, trainable=False)
