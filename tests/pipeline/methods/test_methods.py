"""Every method on a tiny model: it starts as it says, and is saved, loaded and counted; a few go all the way."""

import copy
import re
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models
from pipeline.params.reading import changed
from pipeline.predict.answering import open_adapter
from stages import evaluate, factorize_init, train
from tests import workspace
from tests.stages.running import TOKENIZE, added, base_model, logits, report, run

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
WHOLE = [  # a section of each kind, and forms that make another file or another start
    *((word, {}) for word in ("lora", "full", "head", "krona", "kadaptation", "vera", "ia3", "bitfit", "ln_tuning")),
    ("lora", {"lora.init_lora_weights": "pissa"}),
    ("directions", {"directions.init": "warm"}),
    ("peft", {"peft.type": "OFT", "peft.r": 0, "peft.oft_block_size": 4}),
]


@pytest.fixture(scope="module", autouse=True)
def tokens(tmp_path_factory):
    """A workspace with tokens as the working folder."""
    folder = workspace.make(tmp_path_factory.mktemp("methods"), train={"epochs": 1, "batch_size": 48})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        run(TOKENIZE)
        base = base_model(params.load(params.TrainView))
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield


def seen(view, word, overrides=None):
    """What a stage sees of params.yaml where a section is chosen."""
    return changed({"adapter": word, **(overrides or {})}, view)


def test_there_is_a_number_for_each_section():
    assert params.load_params().sections.keys() == TRAINED.keys()


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


@pytest.mark.parametrize(("word", "overrides"), WHOLE)
def test_a_method_goes_all_the_way(word, overrides):
    factorize_init.main(seen(params.FactorizeInitView, word, overrides))
    view = seen(params.TrainView, word, overrides)
    base = logits(base_model(view))
    fresh = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=True)
    frozen = {name for name, tensor in fresh.state_dict(keep_vars=True).items() if not tensor.requires_grad}
    train.main(view)
    before, after = (load_file(folder / WEIGHTS) for folder in (artifacts.INIT, artifacts.ADAPTER))
    assert before.keys() == after.keys()
    stood = {name for name in before if torch.equal(before[name], after[name])}
    assert stood == {name for name in before if with_adapter(name, frozen)}

    evaluate.main(seen(params.EvaluateView, word, overrides))
    found = report(artifacts.EVALUATE_METRICS)
    assert found["adapter_bytes"] == sum(tensor.nbytes for tensor in after.values()) + header_bytes()
    loaded = adapters.load_adapter(base_model(view), artifacts.ADAPTER, trainable=False)
    assert not torch.equal(logits(loaded), base)
    opened, _ = open_adapter(artifacts.ADAPTER, "tiny-roberta")
    assert torch.equal(logits(opened.cpu()), logits(loaded))
    run_card(artifacts.ADAPTER)


# Files that PEFT would load without a word


def saved(word, folder):
    """The folder with a fresh adapter of a method."""
    view = seen(params.TrainView, word, {"vera.save_projection": False})
    adapters.save_adapter(added(base_model(view), view.section, view.base_model), folder, view.base_model)
    return folder


def load(folder):
    return adapters.load_adapter(base_models.load_base_model(), folder, trainable=False)


def write(folder, tensors):
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder):
    with pytest.raises(UserError) as error:
        load(folder)
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(folder))
    return line


@pytest.mark.parametrize("word", FORMS)
def test_a_file_holds_all_tensors_of_its_method_and_no_others(word, tmp_path):
    folder = saved(word, tmp_path)
    assert not any(parameter.is_meta for parameter in load(folder).parameters())
    whole = load_file(folder / WEIGHTS)
    for name in (min(whole), max(whole)):
        write(folder, {key: tensor for key, tensor in whole.items() if key != name})
        line = refusal(folder)
        assert "missing" in line.lower()
        assert name.removesuffix(".weight").rpartition(".")[2] in line
        shape = whole[name].shape
        write(folder, whole | {name: torch.zeros(*shape[:-1], shape[-1] + 1)})
        refusal(folder)
    write(folder, whole | {"more": torch.zeros(2, 2)})
    assert "more is no part of this adapter on this base model" in refusal(folder)


# Helpers


def run_card(folder):
    """Run the snippet of an adapter's card where it lies, beside the base model that it names."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    link = folder / "tiny-roberta"
    link.symlink_to(Path("tiny-roberta").resolve())
    with chdir(folder):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 what the card says is asked for
    link.unlink()


def with_adapter(name, frozen):
    """Whether a tensor of the file is among those of the model, which have the adapter's name in theirs."""
    stem, _, last = name.rpartition(".")
    return bool({name, f"{name}.default", f"{stem}.default.{last}"} & frozen)


def header_bytes():
    """The length of the file's header, and of the number that says it."""
    path = artifacts.ADAPTER / WEIGHTS
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
