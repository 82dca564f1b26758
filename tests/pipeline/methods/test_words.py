"""Every word of `adapter` on a tiny model: it starts as it says, trains, is saved, loaded, counted and merged."""

import copy
import re
from contextlib import chdir
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lsr
from lsr.tuner.factors import entries
from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models, pooling
from pipeline.params import reading
from pipeline.predict.opening import open_adapter
from pipeline.training import arguments
from stages import evaluate, factorize_init, train
from tests import workspace
from tests.stages.running import TOKENIZE, added, base_model, logits, report, run

WORDS = (
    *("lsr", "lora", "full", "head", "lokr", "krona", "kadaptation", "vera", "fourierft", "vblora", "unilora"),
    *("tinylora", "c3a", "directions", "loraxs", "lorasb", "ia3", "bitfit", "ln_tuning", "peft"),
)
FORMS = [  # what else a section may say that makes another file, or another start
    ("lora", {"init": "pissa"}),
    ("lora", {"init": "olora", "use_rslora": True, "use_dora": True}),
    ("lora", {"init": "eva"}),
    ("lokr", {"r": 1, "decompose_both": True, "decompose_factor": 4}),
    ("vera", {"save_projection": False}),
    ("unilora", {"save_indices": True}),
    ("tinylora", {"save_projection": False, "weight_tying": 1.0}),
    ("directions", {"init": "warm", "frames_dtype": "bfloat16"}),
    ("peft", {"type": "OFT", "options": {"r": 0, "oft_block_size": 4}}),
    ("peft", {"type": "LILY", "options": {"r": 2}}),
]
_load = base_models.load_base_model  # before the workspace has another one
CASES = [*((word, {}) for word in WORDS), *FORMS]
LAYERS, WIDTH = 4, 24  # query and value of two layers
TRAINED = {  # numbers of the adapter in these cases, from the formulas of the methods
    "lora": 8 * 2 * WIDTH * LAYERS,
    "full": 19_472,
    "head": 0,
    "krona": (4 * 4 + 6 * 6) * LAYERS,
    "kadaptation": 8**3 + 2 * WIDTH * LAYERS,
    "vera": (16 + WIDTH) * LAYERS,
    "fourierft": 30 * LAYERS,
    "vblora": 9 * 8 + 4 * 2 * 3 * 9 * LAYERS,
    "unilora": 50,
    "tinylora": 3 * LAYERS,
    "c3a": WIDTH**2 // 8 * LAYERS,
    "directions": 12,
    "loraxs": 4**2 * LAYERS,
    "lorasb": 4**2 * LAYERS,
    "ia3": 2 * (24 + 24 + 24 + 40),  # PEFT's: keys, values, and what goes into both layers that end so
    "bitfit": 24 + 2 * (7 * 24 + 40),
    "ln_tuning": 2 * 24 * (2 * 2 + 1),
    "peft": 2 * WIDTH * LAYERS,
}
RANDOM = {"fourierft", "vblora", "unilora", "c3a"}  # whose authors start with a small update that is not zero


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A workspace with tokens and two tables of one row each, so that they are soon read."""
    folder = workspace.make(
        tmp_path_factory.mktemp("words"), train={"epochs": 1, "batch_size": 48}, lora={"examples": 32}
    )
    for table, row in (("datasets", "glue"), ("models", "tiny")):
        path = folder / f"pipeline/{table}.yaml"
        workspace.write_yaml(path, {row: workspace.read_yaml(path)[row]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())
        run(TOKENIZE)
        base = base_model(params.load(params.TrainView))
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield workspace.read_yaml(Path("params.yaml"))


@pytest.fixture
def chosen(tokens):
    """A function that returns what each stage sees where a word is chosen, and its section changed."""

    def choose(word, section, **changes):
        merged = workspace.merged(tokens, {"adapter": word, **changes})
        merged[word] = {**merged[word], **section}
        content = params.Params.model_validate(merged)
        views = (params.FactorizeInitView, params.TrainView, params.EvaluateView)
        return [reading.seen_by(view, content, params.load_row) for view in views]

    return choose


def test_there_is_a_word_for_each_method():
    assert tuple(params.ADAPTERS) == WORDS


@pytest.mark.parametrize(("word", "section"), CASES)
def test_a_method_goes_all_the_way(chosen, word, section):
    can_merge = section.get("type") != "LILY"
    initialized, fitted, evaluated = chosen(word, section, evaluate={"export": ["merged"] if can_merge else []})
    factorize_init.main(initialized)
    base = logits(base_model(fitted))
    fresh = adapters.load_adapter(base_model(fitted), artifacts.INIT, trainable=True)
    frozen = {name for name, tensor in fresh.state_dict(keep_vars=True).items() if not tensor.requires_grad}
    if word in RANDOM:
        assert 0 < (logits(fresh) - base).abs().max() < 0.05
    elif section.get("init") == "warm":
        assert not torch.allclose(logits(fresh), base, atol=1e-3)
    elif section.get("init") in ("pissa", "olora"):
        assert torch.allclose(logits(fresh), base, atol=1e-6)
    else:
        assert torch.equal(logits(fresh), base)

    train.main(fitted)
    before, after = (load_file(folder / adapters.WEIGHTS) for folder in (artifacts.INIT, artifacts.ADAPTER))
    assert before.keys() == after.keys()
    stood = {name for name in before if torch.equal(before[name], after[name])}
    assert stood == {name for name in before if with_adapter(name, frozen)}

    evaluate.main(evaluated)
    found = report(artifacts.EVALUATE_METRICS)
    assert found["adapter_trained"] == TRAINED.get(word if not section else "", found["adapter_trained"])
    assert found["adapter_stored"] + found["head_parameters"] == sum(map(entries, after.values()))
    assert found["adapter_effective"] >= found["adapter_trained"]
    assert found["adapter_effective"] >= found["adapter_stored"] or not can_merge  # LILY stores what is shared twice
    assert found["adapter_bytes"] == sum(tensor.nbytes for tensor in after.values()) + header_bytes()
    assert ("merge_difference" in found) == can_merge
    assert found.get("merge_difference", 0) < 1e-5
    assert report(artifacts.EXPORTS / artifacts.PARITY).get("merged", 0) < 1e-5

    loaded = adapters.load_adapter(base_model(fitted), artifacts.ADAPTER, trainable=False)
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in loaded.parameters())
    assert not torch.equal(logits(loaded), base)
    opened, _ = open_adapter(artifacts.ADAPTER, "tiny-roberta")
    assert torch.equal(logits(opened.cpu()), logits(loaded))
    run_card(artifacts.ADAPTER)
    moved = loaded.to("meta")
    assert all(tensor.is_meta for tensor in (*moved.parameters(), *moved.buffers()))


@pytest.mark.parametrize(
    ("word", "section"), [("fourierft", {"init_weights": True}), ("c3a", {"init_weights": "zeros"})]
)
def test_a_random_start_can_be_left_out(chosen, word, section):
    view = chosen(word, section)[0]
    model = adapters.add_adapter(base_model(view), view.section, view.base_model, view.seed)
    assert torch.equal(logits(model), logits(base_model(view)))


def groups_of(view):
    """The learning rate and the weight decay of each parameter of the adapter, by the last parts of its name."""
    model = adapters.add_adapter(base_model(view), view.section, view.base_model, view.seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)].partition(".default")[0].rpartition(".")[2]: (group["lr"], group["weight_decay"])
        for group in arguments.optimizer(model, view).param_groups
        for parameter in group["params"]
        if "classifier" not in names[id(parameter)]
    }


@pytest.mark.parametrize(
    ("word", "section", "groups"),
    [
        ("lora", {"use_dora": True}, {"lora_A": (0.002, 0.01), "lora_magnitude_vector": (0.002, 0.0)}),
        ("ia3", {}, {"ia3_l": (0.005, 0.0)}),
        ("bitfit", {}, {"bitfit_shifts": (0.001, 0.0)}),
        ("ln_tuning", {}, {"ln_tuning_layers": (0.001, 0.0)}),
        ("vblora", {}, {"vblora_vector_bank": (0.001, 0.01), "vblora_logits_A": (0.01, 0.01)}),
        ("lorasb", {}, {"lsr_adapters": (0.006, 0.01)}),
    ],
)
def test_each_parameter_has_its_rate_and_decays_where_zero_is_no_change(chosen, word, section, groups):
    assert groups_of(chosen(word, section)[1]).items() >= groups.items()


@pytest.mark.parametrize("train", ["factors", "all"])
def test_the_pipeline_trains_lsr_at_the_rates_that_the_package_gives(chosen, train):
    view = chosen(
        "lsr", {"train": train, "share": "none", "rank_shape": [2, 2], "separation_rank": 4, "init": "random"}
    )[1]
    model = adapters.add_adapter(base_model(view), view.section, view.base_model, view.seed)
    given = lsr.parameter_groups(model, view.section.learning_rate, view.train.head_learning_rate)
    expected = {id(parameter): group["lr"] for group in given for parameter in group["params"]}
    groups = arguments.optimizer(model, view).param_groups
    assert {id(parameter): group["lr"] for group in groups for parameter in group["params"]} == expected


def test_mistakes_of_directions_name_their_section(chosen, monkeypatch):
    with pytest.raises(UserError, match=r"^params\.yaml: directions: budget: must be at most \d+ on these layers, "):
        factorize_init.main(chosen("directions", {"budget": 9999})[0])
    monkeypatch.setattr(adapters, "gradients", mock.Mock(side_effect=ValueError("one class")))
    with pytest.raises(UserError, match=r"^params\.yaml: directions\.init: glue: one class$"):
        factorize_init.main(chosen("directions", {})[0])


def test_what_lsr_pools_has_no_say_in_lora_sb(chosen):
    alone, beside = (chosen("lorasb", {}, lsr=lsr)[0] for lsr in ({}, {"frames_from": ["glue"], "init": "gradient"}))
    assert "glue" in beside.pooled
    assert beside.section == alone.section
    found = [pooling.gradients(base_model(view), view) for view in (alone, beside)]
    assert len(found[0]) == len(found[1]) == 1
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())


def test_the_sections_of_params_yaml_fit_the_default_model(monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    content = params.Params.model_validate(workspace.read_yaml(params.PARAMS))
    view = params.load(params.TrainView)
    base = _load(view.base_model, view.dataset)
    for word in WORDS:
        section = getattr(content, word).filled()
        model = added(copy.deepcopy(base), section, view.base_model)
        assert adapters.count_parameters(model, view.base_model)["head_parameters"] == 770


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
    return bool({f"{name}.default", f"{stem}.default.{last}"} & frozen)


def header_bytes():
    """The length of the file's header, and of the number that says it."""
    path = artifacts.ADAPTER / adapters.WEIGHTS
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
