"""An adapter's folder holds every tensor of its method in the right shape, or it is refused: PEFT would say nothing."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models
from pipeline.params.changed import changed
from tests import workspace
from tests.stages.running import added, base_model

FORMS = {  # a method for each way of storing an adapter
    "lsr": {},
    "lora": {},
    "full": {},
    "head": {},
    "kadaptation": {},
    "bitfit": {},
    "vera": {"vera.save_projection": False},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with a fresh adapter of each method, which nobody changes."""
    folder = workspace.make(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = base_model(params.load(params.TrainView))
        for word, overrides in FORMS.items():
            view = changed({"adapter": word, **overrides}, params.TrainView)
            (folder / word).mkdir()
            adapters.save_adapter(
                added(copy.deepcopy(base), view.section, view.base_model), folder / word, view.base_model
            )
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield folder


@pytest.fixture
def at(made, tmp_path):
    """A function that returns a copy of a method's adapter."""
    return lambda word: Path(shutil.copytree(made / word, tmp_path / "adapter"))


def load(folder):
    return adapters.load_adapter(base_models.load_base_model(), folder, trainable=False)


def write(folder, tensors):
    save_file(tensors, folder / adapters.WEIGHTS, metadata={"format": "pt"})


def refusal(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(UserError) as error:
            load(folder)
    assert not [one for one in caught if one.category is UserWarning]  # the error says it all
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(folder))
    return line


@pytest.mark.parametrize("word", FORMS)
def test_a_file_holds_all_tensors_of_its_method_and_no_others(word, at):
    folder = at(word)
    assert not any(parameter.is_meta for parameter in load(folder).parameters())
    whole = load_file(folder / adapters.WEIGHTS)
    for name in (min(whole), max(whole)):
        write(folder, {key: tensor for key, tensor in whole.items() if key != name})
        line = refusal(folder)
        assert "is missing" in line
        assert name.removesuffix(".weight").rpartition(".")[2] in line
        shape = whole[name].shape
        for wrong in (torch.zeros(*shape[:-1], shape[-1] + 1), torch.zeros(shape, dtype=torch.long)):
            write(folder, whole | {name: wrong})
            refusal(folder)
    write(folder, whole | {"more": torch.zeros(2, 2)})
    assert "more is no part of this adapter on this base model" in refusal(folder)


@pytest.mark.parametrize(("word", "label"), [("lsr", "LORA"), ("lora", "LSR")])
def test_an_adapter_with_the_label_of_another_method_is_refused(word, label, at):
    folder = at(word)
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": label}))
    refusal(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"megatron_config": {}}, "megatron_config: PEFT would import any module that the file names; it is not read"),
        ({"eva_config": [1]}, "eva_config: must hold keys and values, got [1]"),
        ({"rank_pattern": ["query"]}, "does not fit the base model: "),
    ],
)
def test_what_a_configuration_would_do_is_refused(fields, words, at):
    folder = at("lora")
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert words in refusal(folder)
