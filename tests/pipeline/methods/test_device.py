"""Everything of a model is on one device, and moves as a whole: seen without an accelerator, on stand-ins for one."""

from types import SimpleNamespace

import pytest
import torch

from lsr.init import READERS
from pipeline import params
from pipeline.core import artifacts
from pipeline.evaluation import inference
from pipeline.methods import adapters, base_models, device
from pipeline.predict.opening import open_adapter
from stages import evaluate
from tests import workspace

CPU, META = torch.device("cpu"), torch.device("meta")


def devices(model):
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


@pytest.fixture
def accelerator(monkeypatch):
    """A function that makes torch and PEFT find an accelerator: the meta device, unless it is another."""

    def claim(found=META):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: found)
        monkeypatch.setattr("peft.peft_model.infer_device", lambda: str(found))
        monkeypatch.setattr("peft.utils.save_and_load.infer_device", lambda: str(found))

    return claim


def test_without_an_accelerator_the_cpu_is_the_fastest(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert device.fastest() == CPU


@pytest.mark.parametrize("adapter", workspace.MAIN)
@pytest.mark.parametrize("trainable", [True, False])
def test_an_adapter_is_loaded_to_the_device_of_its_base(after, accelerator, adapter, trainable):
    after(adapter)
    accelerator()
    view = params.load(params.TrainView)
    base = base_models.load_base_model(view.base_model, view.dataset)
    assert devices(adapters.load_adapter(base, artifacts.ADAPTER, trainable=trainable)) == {CPU}


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_a_model_moves_as_a_whole(after, accelerator, adapter):
    after(adapter)
    accelerator()
    view = params.load(params.TrainView)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=False)
    assert devices(device.place(model)) == {META}


def test_evaluation_and_exports_are_asked_on_one_device(after, accelerator, monkeypatch):
    after(evaluate={"export": ["lora", "merged"]})
    accelerator()
    seen = []

    def logits(model, tokens, *_):
        seen.append(devices(model))
        return torch.eye(2)[torch.arange(len(tokens)) % 2]

    monkeypatch.setattr(inference, "logits", logits)
    evaluate.main(params.load(params.EvaluateView))
    assert seen == [{META}] * 4  # beside the base, merged, and each export


def test_predictions_are_asked_on_one_device(after, accelerator):
    after("lora")
    accelerator()
    model = open_adapter(artifacts.ADAPTER, None).model
    assert devices(model) == {META}
    assert not model.training


class Batch(dict):
    """A batch whose values remember where they went."""

    def __init__(self, went):
        super().__init__(input_ids=SimpleNamespace(to=went.append))


def test_examples_are_read_on_the_accelerator_and_the_model_is_then_where_it_was(after, accelerator, monkeypatch):
    after(lsr={"init": "gradient"})
    view = params.load(params.TrainView)
    base = base_models.load_base_model(view.base_model, view.dataset)
    names = adapters.target_names(base, view.section, view.base_model, view.seed)
    accelerator(torch.device("cuda"))
    went, batches = [], []
    # Nothing comes back from a stand-in with its values: what is asked is seen, and nothing moves.
    monkeypatch.setattr(base, "to", lambda target: went.append(target) or base)
    monkeypatch.setattr(device, "device_of", lambda _: (went or [CPU])[-1])

    def gradients(model, layers, examples, head, **_):
        assert went == [torch.device("cuda")]
        list(examples)
        return dict.fromkeys(layers)

    monkeypatch.setitem(READERS, "gradient", gradients)
    examples = [Batch(batches), Batch(batches)]
    found = adapters.gradients(base, names, examples, view.base_model, "gradient", view.section.head_steps, view.seed)
    assert list(found) == names
    assert len(names) == 4
    assert went == [torch.device("cuda"), CPU]
    assert batches == [torch.device("cuda")] * 2
