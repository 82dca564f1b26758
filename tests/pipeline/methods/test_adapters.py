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
from tests.stages.running import added

FOLDER = Path("adapter")
FORMS = {
    **{word: {} for word in ("lsr", "lora", "full", "head", "krona", "kadaptation", "directions", "bitfit")},
    "lora-pissa": {"init_lora_weights": "pissa"},
    "vera-seeded": {"save_projection": False},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with a fresh adapter of each method, which nobody changes."""
    folder = workspace.make(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        view = params.load(params.TrainView)
        base = base_of(view)
        for word, section in FORMS.items():
            name = word.partition("-")[0]
            chosen = changed(
                {"adapter": name, **{f"{name}.{key}": value for key, value in section.items()}}, params.TrainView
            )
            model = added(copy.deepcopy(base), chosen.section, view.base_model)
            (folder / word).mkdir()
            adapters.save_adapter(model, folder / word, view.base_model)
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield folder


@pytest.fixture
def at(made, tmp_path, monkeypatch):
    """A function that puts a copy of a method's adapter at FOLDER."""

    def go(word):
        monkeypatch.chdir(made)
        return shutil.copytree(made / word, tmp_path / FOLDER)

    return go


def base_of(view):
    torch.manual_seed(0)
    return base_models.load_base_model(view.base_model, view.dataset)


def load(folder):
    return adapters.load_adapter(base_of(params.load(params.TrainView)), folder, trainable=False)


def edit(folder, change):
    path = folder / adapters.WEIGHTS
    tensors = load_file(path)
    found = change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return found


def refusal(folder):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError) as error:
            load(folder)
    assert not [one for one in said if one.category is UserWarning]  # the error says it all
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(folder))
    return line


def names(folder):
    return sorted(load_file(folder / adapters.WEIGHTS))


@pytest.mark.parametrize("word", FORMS)
def test_what_is_whole_is_loaded(word, at):
    folder = at(word)
    assert not any(parameter.is_meta for parameter in load(folder).parameters())


@pytest.mark.parametrize("word", FORMS)
def test_no_tensor_may_be_missing(word, at):
    folder = at(word)
    whole = names(folder)
    for name in {whole[0], whole[-1], *(name for name in whole if "layer.1" in name and "query" in name)}:
        taken = edit(folder, lambda tensors, name=name: tensors.pop(name))
        line = refusal(folder)
        assert "is missing" in line
        tail = name.rpartition(".")[2]
        assert tail == "weight" or tail in line
        edit(folder, lambda tensors, name=name, taken=taken: tensors.update({name: taken}))
    load(folder)


@pytest.mark.parametrize("word", FORMS)
@pytest.mark.parametrize(
    "name", ["more", "base_model.model.roberta.encoder.layer.9.attention.self.query.lora_A.weight"]
)
def test_no_tensor_may_be_too_much(word, name, at):
    folder = at(word)
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    assert f"{name} is no part of this adapter on this base model" in refusal(folder)


@pytest.mark.parametrize("word", FORMS)
def test_every_tensor_has_its_shape(word, at):
    folder = at(word)
    for name in (names(folder)[0], names(folder)[-1]):
        whole = load_file(folder / adapters.WEIGHTS)[name]
        for wrong in (torch.zeros(*whole.shape[:-1], whole.shape[-1] + 1), torch.zeros(1), torch.zeros(0)):
            edit(folder, lambda tensors, name=name, wrong=wrong: tensors.update({name: wrong}))
            refusal(folder)
        edit(folder, lambda tensors, name=name, whole=whole: tensors.update({name: whole}))


@pytest.mark.parametrize(("word", "label"), [("lsr", "LORA"), ("lora", "LSR"), ("head", "LSR")])
def test_an_adapter_with_the_label_of_another_method_is_refused(word, label, at):
    folder = at(word)
    path = folder / adapters.CONFIG
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "peft_type": label, "target_modules": ["query", "value"]}))
    refusal(folder)


@pytest.mark.parametrize("word", FORMS)
def test_a_pickle_is_not_read(word, at):
    folder = at(word)
    torch.save(load_file(folder / adapters.WEIGHTS), folder / "adapter_model.bin")
    (folder / adapters.WEIGHTS).unlink()
    assert "adapter_model.bin: a pickle, which can run any code when read, so it is not read" in refusal(folder)


def test_a_file_that_is_cut_off_is_one_line(at):
    folder = at("lora")
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    assert refusal(folder).startswith(f"{path}: corrupt or cut off: ")


def test_a_head_of_whole_numbers_is_refused(at):
    folder = at("lora")
    name = next(name for name in names(folder) if name.endswith("out_proj.weight"))
    edit(folder, lambda tensors: tensors.update({name: tensors[name].long()}))
    assert "out_proj.weight holds int64 values, but the model computes with" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"megatron_config": {}}, "megatron_config: PEFT would import any module that the file names; it is not read"),
        ({"eva_config": [1]}, "eva_config: must hold keys and values, got [1]"),
    ],
)
def test_what_a_configuration_would_do_is_refused(fields, words, at):
    folder = at("lora")
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert words in refusal(folder)
