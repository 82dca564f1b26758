"""Everything of a model is on one device, and moves as a whole: seen without an accelerator, on a stand-in for one."""

import pytest
import torch

from pipeline import params
from pipeline.methods import adapters, device
from pipeline.params.reading import changed
from tests import workspace
from tests.stages.running import added, base_model

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.make(tmp_path_factory.mktemp("device")))
        yield


def devices(model):
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("word", ["lsr", "vera", "full"])
def test_an_adapter_is_loaded_to_the_device_of_its_base_and_moves_as_a_whole(word, tmp_path, monkeypatch):
    view = changed({"adapter": word}, params.TrainView)
    adapters.save_adapter(added(base_model(view), view.section, view.base_model), tmp_path, view.base_model)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: META)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: str(META))
    monkeypatch.setattr("peft.utils.save_and_load.infer_device", lambda: str(META))
    model = adapters.load_adapter(base_model(view), tmp_path, trainable=True)
    assert devices(model) == {CPU}
    assert devices(device.place(model)) == {META}
