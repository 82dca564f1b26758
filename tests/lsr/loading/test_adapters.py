"""An adapter's folder comes back as what was saved, and whatever else it holds is one clear line."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from lsr.init import INITIALIZATIONS
from lsr.loading.adapters import load_adapter
from lsr.loading.layers import load_layers
from lsr.tuner.files import CONFIG, WEIGHTS, read_files
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits
from tests.kit import edit, refused, write
from tests.lsr.saved import CASES, save

QUERY = "bert.encoder.layer.0.attention.self.query"
SHAPES = {"out_features": 24, "in_features": 24, "out_shape": [6, 4], "in_shape": [6, 4]}


@pytest.fixture
def folder(beside):
    return beside / "adapter"


def adapter_state(adapter):
    return {name: value for name, value in adapter.state_dict().items() if value is not None}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_bit_for_bit_and_nothing_is_decomposed(case, tmp_path, monkeypatch):
    name, fields = CASES[case]
    model = save(name, tmp_path, **fields)
    for word, one in INITIALIZATIONS.items():
        monkeypatch.setitem(INITIALIZATIONS, word, one._replace(start=None))  # not to be called
    loaded, alone = load_adapter(tmp_path / "adapter"), load_layers(read_files(tmp_path / "adapter")).layers
    assert torch.equal(logits(loaded), logits(model))
    found = adapted_layers(loaded)
    for layer_name, layer in adapted_layers(model).items():
        state = adapter_state(layer.adapter("default"))
        for other in (found[layer_name], alone[layer_name]):
            again = adapter_state(other.adapter("default"))
            assert again.keys() == state.keys()
            assert all(torch.equal(value, again[key]) for key, value in state.items())
            assert other.adapter("default").form == layer.adapter("default").form


# What others may have made


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def configure(**changes):
    return lambda folder: edit(folder / CONFIG, **changes)


def content(name, content):
    return lambda folder: write(folder / name, content)


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    write(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:2000])


def pipe(folder):
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    write(folder / "adapter_model.bin", pickle.dumps(Explosive()))


def tensors(change, ending="factor_A1"):
    """Change the first tensor of a name: into None to remove it."""

    def apply(held):
        name = next(name for name in held if name.endswith(ending))
        changed = change(held.pop(name))
        return held if changed is None else {**held, name: changed.contiguous()}

    return lambda folder: edit(folder / WEIGHTS, apply)


MISFIT = f"{WEIGHTS} and {CONFIG} do not fit together: "
MISTAKES = {  # what is wrong: how the folder is changed, what the line says
    "no folder": (shutil.rmtree, "adapter: no such folder"),
    "no adapter": (without(CONFIG), f"adapter: not an adapter folder, {CONFIG} is missing"),
    "no JSON": (content(CONFIG, b"{"), f"{CONFIG}: not valid JSON"),
    "a deep file": (content(CONFIG, b"[" * 100_000), f"{CONFIG}: not valid JSON: maximum recursion depth"),
    "a large file": (configure(task_type="x" * 8_000_000), f"{CONFIG}: a file of over 8,000,000 bytes"),
    "a pipe": (pipe, f"{CONFIG}: not a file"),
    "another method": (configure(peft_type="LORA"), "adapter: an adapter of the method LORA; needed: LSR"),
    "a bad field": (configure(rank_shape=[0]), f"{CONFIG}: rank_shape must hold one or two ranks >= 1"),
    "no number": (configure(alpha=float("nan")), f"{CONFIG}: alpha must be a positive number, got nan"),
    "a huge rank": (configure(rank_shape=[10_000_000, 2]), "its configuration says 360,000,048 entries, but the file"),
    "no shapes": (configure(resolved=None), "resolved: the configuration does not contain the shapes of the layers"),
    "shapes that hold no width": (
        configure(resolved={"usual": {**SHAPES, "out_shape": [2, 2]}, "others": {}}),
        f"{MISFIT}layer '{QUERY}': out_shape must hold 2 sizes with a product from 24 to 48",
    ),
    "other terms": (
        configure(separation_rank=2),
        "from checkpoint, the shape in current model is torch.Size([2, 2, 6]).",
    ),
    "no weights": (without(WEIGHTS), f"{WEIGHTS}: no such file"),
    "cut off": (cut, f"{WEIGHTS}: corrupt or cut off"),
    "a pickle": (pickled, "adapter_model.bin: a pickle, which can run any code when read, so it is not read"),
    "not finite": (tensors(lambda value: value / 0), "factor_A1 holds values that are not finite"),
    "a missing factor": (
        tensors(lambda value: None, "factor_B2"),
        f"{MISFIT}layer '{QUERY}': Missing key(s) in state_dict: \"factor_B2\"",
    ),
    "a missing bias": (tensors(lambda value: None, "classifier.bias"), "classifier.bias"),
    "a longer bias": (
        tensors(lambda value: torch.cat([value, value]), "classifier.bias"),
        "adapter: does not fit the base model: size mismatch for base_model.model.classifier",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_runs_no_code(what, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    change, message = MISTAKES[what]
    change(folder)
    refused(load_adapter, Path("adapter"), says=message)
    assert not (folder.parent / "exploded").exists()
