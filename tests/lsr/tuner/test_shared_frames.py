"""Frames from another folder: held once for all adapters, told by their hash, and never mistaken for others."""

import gc
import shutil
import weakref

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.algebra.shapes import Form
from lsr.loading.adapters import load_adapter
from lsr.loading.contents import read_contents
from lsr.tuner.forms import check_room
from lsr.tuner.layer import adapted_layers
from lsr.tuner.resolved import Resolved
from tests.capabilities.checks import stir, train, trainable
from tests.capabilities.models import logits, tiny
from tests.kit import edit, refused
from tests.lsr.layers import adapters
from tests.lsr.saved import made

USUAL = {"task_type": "SEQ_CLS", "rank_shape": (4,), "alpha": 7, "seed": 0, "train": "core"}
SOURCES = {  # fields of the adapter whose frames they are
    "of its own layers": {"init_weights": "principal"},
    "of kinds, trained": {"share": "layers", "train": "all"},
    "of kinds, frozen": {"share": "layers"},
}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
each_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def first(folder, **fields):
    """A perturbed adapter with frames of its own, saved beside its base."""
    tiny("bert").save_pretrained(str(folder.parent / "base"))
    return made(LsrConfig(**{**USUAL, **fields}), "bert", str(folder.parent / "base"), 0, None, folder)


def second(folder, source):
    """The configuration of an adapter that takes its frames from a folder."""
    return LsrConfig(**{**USUAL, "share": source.get("share", "none"), "frames": str(folder)})


def on_frames_of(folder, source):
    base = tiny("bert")
    base.name_or_path = str(folder.parent / "base")
    return get_peft_model(base, second(folder, source)).eval()


def kept(model):
    """Frames from elsewhere that layers of a model keep."""
    return [frames for layer in adapted_layers(model).values() for frames in layer.lsr_frames.values()]


@each_source
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_it_starts_as_the_base_and_cores_and_heads_alone_train_are_stored_and_come_back(
    source, low_cpu_mem_usage, tmp_path
):
    owner = first(tmp_path / "one", **source)
    model = on_frames_of(tmp_path / "one", source)
    assert torch.equal(logits(model), logits(tiny("bert")))
    for name, adapter in adapters(model).items():
        assert_close(adapter.factors(), adapters(owner)[name].factors(), rtol=0, atol=0)
    frames = [{name: value.clone() for name, value in one.named_buffers()} for one in kept(model)]
    assert {name.rpartition(".")[2] for name in trainable(model) if ".lsr_" in name} == {"core"}
    train(model)
    for one, values in zip(kept(model), frames, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in one.named_buffers())
    model.save_pretrained(str(tmp_path / "two"))
    written = load_file(tmp_path / "two" / WEIGHTS)
    assert {name.rpartition(".")[2] for name in written if ".lsr_" in name} == {"core"}
    assert {value.numel() for name, value in written.items() if ".lsr_" in name} == {16}
    loaded = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two"), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(value.is_meta for one in kept(loaded) for value in one.buffers())
    loaded.save_pretrained(str(tmp_path / "three"))
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


@pytest.mark.parametrize("share", ["none", "layers"])
def test_adapters_of_one_model_hold_one_copy_which_is_freed_with_the_last(share, tmp_path):
    source = {"share": share}
    first(tmp_path / "one", **source)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    model = on_frames_of(tmp_path / "one", source)
    count = len(kept(model))
    assert count == (2 if share == "layers" else 4)
    model.add_adapter("second", second(tmp_path / "copy", source))
    model.save_pretrained(str(tmp_path / "two"))
    model.load_adapter(str(tmp_path / "two" / "second"), "third")
    assert len(kept(model)) == count
    others = [adapters(model, name) for name in ("second", "third")]
    assert all(adapter.frames is other[name].frames for name, adapter in adapters(model).items() for other in others)
    del others
    tensors = [weakref.ref(value) for one in kept(model) for value in one.buffers()]
    model.set_adapter("second")
    expected = logits(model)
    model.delete_adapter("default")
    assert (len(kept(model)), torch.equal(logits(model), expected)) == (count, True)
    model.delete_adapter("third")
    model.delete_adapter("second")
    assert kept(model) == []
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)


@pytest.mark.parametrize("frames", ["../frames", "inside/frames"])
def test_a_relative_folder_is_one_beside_or_inside_the_adapters(frames, tmp_path, monkeypatch):
    first(tmp_path / "elsewhere")
    model = stir(on_frames_of(tmp_path / "elsewhere", {}))
    model.save_pretrained(str(tmp_path / "two"))
    place = {"../frames": "frames", "inside/frames": "two/inside/frames"}[frames]
    (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / place)
    edit(tmp_path / "two" / CONFIG, frames=frames)
    first(tmp_path / "here/frames", seed=1)  # other frames of the name in the working directory
    monkeypatch.chdir(tmp_path / "here")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two"))), logits(model))
    assert read_contents(tmp_path / "two").updates.keys() == adapted_layers(model).keys()


def test_a_folder_without_frames_is_refused_by_a_model_which_stays_as_it_was(tmp_path):
    first(tmp_path / "one")
    edit(tmp_path / "one" / CONFIG, frames="./other")
    config = LsrConfig(**{**USUAL, "frames": str(tmp_path / "one")})
    says = f"frames: '{tmp_path}/one' holds only a core; its frames are in './other': name that"
    base, model = tiny("bert"), get_peft_model(tiny("bert"), LsrConfig(**USUAL))
    before = set(model.state_dict())
    refused(get_peft_model, base, config, kind=ValueError, says=says)
    refused(model.add_adapter, "second", config, kind=ValueError, says=says)
    assert list(base.state_dict()) == list(tiny("bert").state_dict())
    assert (set(model.state_dict()), list(model.peft_config), kept(model)) == (before, ["default"], [])


def test_frames_that_are_not_those_of_the_training_are_refused_by_every_reader(tmp_path):
    first(tmp_path / "one")
    on_frames_of(tmp_path / "one", {}).save_pretrained(str(tmp_path / "two"))

    def change(tensors):
        tensors[min(name for name in tensors if "factor_A1" in name)] += 1e-3

    edit(tmp_path / "one" / WEIGHTS, change)
    for read in (load_adapter, read_contents, lambda folder: PeftModel.from_pretrained(tiny("bert"), str(folder))):
        refused(read, tmp_path / "two", kind=ValueError, says="trained on others")


def test_few_numbers_are_not_taken_that_stand_for_large_matrices():
    form = Form((200, 200), (200, 200), (200, 200), 1, 40_000, 40_000)
    config = LsrConfig(rank_shape=(200, 200), separation_rank=1)
    config.resolved = Resolved.of({"layer": form})
    tensors = {"layer": {"factor_A1": torch.empty(form.parameters)}}
    says = "layer 'layer': its A and B have 3,200,000,000 entries; at most 1,07"
    refused(check_room, config, tensors, kind=ValueError, says=says)


def test_a_name_that_is_no_folder_is_refused_without_a_hub():
    says = "from 'nobody/nothing': nobody/nothing: no such adapter here, and from the hub: "
    refused(get_peft_model, tiny("bert"), LsrConfig(**USUAL, frames="nobody/nothing"), kind=ValueError, says=says)
