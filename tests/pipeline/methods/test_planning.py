"""A section becomes PEFT's configuration, or one line per mistake in it."""

import copy

import pytest
import torch

from pipeline import params
from pipeline.data import base_models
from pipeline.methods import planning
from pipeline.params.reading import changed
from pipeline.training import arguments
from tests import workspace
from tests.kit import refused
from tests.stages.running import added

MISTAKES = [  # on the tiny model
    ("vera", {"vera.rr": 4}, "vera: rr: no such key; did you mean r?"),
    ("lora", {"lora.bias": "al"}, "lora: Requested bias: al, is not implemented"),
    ("lora", {"lora.init_lora_weights": "pisa"}, "lora: Unknown initialization init_lora_weights='pisa'"),
    ("lora", {"lora.init_lora_weights": "eva"}, "lora: init_lora_weights: eva needs examples, which this pipeline"),
    ("peft", {"peft.type": "LOHAA"}, "peft: type: PEFT 0.21.2 has no method 'LOHAA' that adapts layers; did you mean"),
    ("ln_tuning", {"ln_tuning.layers": [1]}, "ln_tuning: layers: LN_TUNING cannot choose layers by index; name them"),
    ("lsr", {"lsr.separation_rank": 0}, "lsr.separation_rank: input should be 'auto' or greater than or equal to 1"),
    ("directions", {"directions.budget": "none", "directions.rank_shape": [25]}, "directions: layer 'roberta.encoder"),
    ("directions", {"directions.budget": 9999}, "directions: the budget must be in [1, "),
    ("kadaptation", {"kadaptation.n": 5}, "kadaptation: n: 5 does not divide 24, a width of the layer"),
    ("kadaptation", {"kadaptation.target_modules": ["LayerNorm"]}, "kadaptation: KAdaptation adapts nn.Linear, but"),
    ("vblora", {"vblora.lgits_learning_rate": 0.1}, "vblora: lgits_learning_rate: no parameter of VBLORA has 'lgits'"),
    ("vera", {"vera.target_modules": ["qury"]}, "vera: target_modules: no layer is named 'qury'; linear layers: query"),
    ("vera", {"vera.target_modules": ["classifier"]}, "vera: target_modules: 'classifier' is part of the head, or of"),
    ("vera", {"vera.layers": [9]}, "vera: layers_to_transform: no adapted layer has the index 9"),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny model, in a workspace that is the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.make(tmp_path_factory.mktemp("table")))
        view = params.load(params.TrainView)
        torch.manual_seed(0)
        yield base_models.load_base_model(view.base_model, view.dataset)


def seen(word, overrides):
    return changed({"adapter": word, **overrides}, params.TrainView)


def fresh(base, view):
    return added(copy.deepcopy(base), view.section, view.base_model, view.seed)


def config_of(base, view):
    return planning.resolve(view.section, base, view.base_model, view.seed).config


@pytest.mark.parametrize(("word", "overrides", "message"), MISTAKES)
def test_a_mistake_is_one_line(base, word, overrides, message):
    refused(lambda: fresh(base, seen(word, overrides)), says=f"params.yaml: {message}")


def test_any_method_is_reached_by_its_type(monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    for name in planning.known_types().keys() - {"LSR"}:
        section = changed({"adapter": "peft", "peft.type": name}, params.TrainView).section
        assert planning.configured(section, 0, ["dense"], ["classifier"]).peft_type == name


def test_the_seed_is_every_seed_that_a_section_does_not_set(base):
    for word, field in {"vera": "projection_prng_key", "unilora": "proj_seed", "lsr": "seed"}.items():
        assert getattr(config_of(base, seen(word, {"seed": 7})), field) == 7
    assert config_of(base, seen("vera", {"seed": 7, "vera.projection_prng_key": 3})).projection_prng_key == 3


def groups_of(base, view):
    """The learning rate and the weight decay of each parameter of the adapter, by the last parts of its name."""
    model = fresh(base, view)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)].partition(".default")[0].rpartition(".")[2]: (group["lr"], group["weight_decay"])
        for group in arguments.optimizer(model, view).param_groups
        for parameter in group["params"]
        if "classifier" not in names[id(parameter)]
    }


@pytest.mark.parametrize(
    ("word", "overrides", "groups"),
    [
        ("lora", {"lora.use_dora": True}, {"lora_A": (0.002, 0.01), "lora_magnitude_vector": (0.002, 0.0)}),
        ("ia3", {}, {"ia3_l": (0.005, 0.0)}),
        ("bitfit", {}, {"bias": (0.001, 0.0)}),
        ("ln_tuning", {}, {"ln_tuning_layers": (0.001, 0.0)}),
        ("vblora", {}, {"vblora_vector_bank": (0.001, 0.01), "vblora_logits_A": (0.01, 0.01)}),
        ("directions", {}, {"lsr_adapters": (0.004, 0.01)}),
    ],
)
def test_each_parameter_has_its_rate_and_decays_where_zero_is_no_change(base, word, overrides, groups):
    assert groups_of(base, seen(word, overrides)).items() >= groups.items()
