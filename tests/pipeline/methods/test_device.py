"""Everything of a model is on one device, and moves as a whole: seen without an accelerator, on stand-ins for one."""

from types import SimpleNamespace

import pytest
import torch

from lsr.init import READERS
from pipeline import params
from pipeline.methods import adapters, device, pooling
from pipeline.params.changed import changed
from tests import workspace
from tests.stages.running import added, base_model

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.make(tmp_path_factory.mktemp("device")))
        yield


@pytest.fixture
def accelerator(monkeypatch):
    """A function that makes torch and PEFT find an accelerator."""

    def claim(found):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: found)
        monkeypatch.setattr("peft.peft_model.infer_device", lambda: str(found))
        monkeypatch.setattr("peft.utils.save_and_load.infer_device", lambda: str(found))

    return claim


def devices(model):
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("word", ["lsr", "vera", "full"])
def test_an_adapter_is_loaded_to_the_device_of_its_base_and_moves_as_a_whole(accelerator, word, tmp_path):
    view = changed({"adapter": word}, params.TrainView)
    adapters.save_adapter(added(base_model(view), view.section, view.base_model), tmp_path, view.base_model)
    accelerator(META)
    model = adapters.load_adapter(base_model(view), tmp_path, trainable=True)
    assert devices(model) == {CPU}
    assert devices(device.place(model)) == {META}


class Batch(dict):
    """A batch whose values remember where they went."""

    def __init__(self, went):
        super().__init__(input_ids=SimpleNamespace(to=went.append))


def test_examples_are_read_on_the_accelerator_and_the_model_is_then_where_it_was(accelerator, monkeypatch):
    view = changed({"lsr.init": "gradient"}, params.TrainView)
    base = base_model(view)
    names = adapters.target_names(base, view.section, view.base_model, view.seed)
    accelerator(CUDA)
    went, batches = [], []
    # Nothing comes back from a stand-in with its values: what is asked is seen, and nothing moves.
    monkeypatch.setattr(base, "to", lambda target: went.append(target) or base)
    monkeypatch.setattr(device, "device_of", lambda _: (went or [CPU])[-1])

    def gradients(model, layers, examples, head, **_):
        assert went == [CUDA]
        list(examples)
        return dict.fromkeys(layers)

    monkeypatch.setitem(READERS, "gradient", gradients)
    examples = [Batch(batches), Batch(batches)]
    found = pooling.read_gradients(
        base, names, examples, view.base_model, "gradient", view.section.head_steps, view.seed
    )
    assert (list(found), len(names)) == (names, 4)
    assert went == [CUDA, CPU]
    assert batches == [CUDA] * 2
