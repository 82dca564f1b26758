"""What is written comes back, and a mistake is refused with what is allowed."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

from lsr import LsrConfig
from lsr.algebra.separable import FactorShapes
from lsr.init import INITIALIZATIONS
from lsr.loading.contents import read_contents
from lsr.tuner.forms import check_room
from lsr.tuner.injected import Resolved
from lsr.tuner.layer import LsrLinear, find_lsr_layers
from tests.kit import edit, refused
from tests.old_tiny.models import logits, tiny
from tests.old_tiny.subjects import CASES

WORDS = list(INITIALIZATIONS)

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))
NAMES = st.lists(st.sampled_from(["query", "key", "value", "output.dense"]), min_size=1, unique=True)
CORES = st.fixed_dictionaries(
    {
        "train": st.just("core"),
        "rank_shape": st.just((3,)),
        "share": st.sampled_from(["none", "layers"]),
        "core": st.sampled_from(["full", "diagonal"]),
    }
)
SUMS = st.fixed_dictionaries(
    {
        "rank_shape": SHAPES,
        "separation_rank": st.integers(1, 64),
        "rank_pattern": st.dictionaries(st.just("query"), SHAPES),
    }
)


@given(
    family=SUMS | CORES,
    alpha=st.floats(0.1, 100),
    init_weights=st.sampled_from([True, False, *WORDS]),
    seed=st.none() | st.integers(0, 2**40),
    dropout=st.floats(0, 0.9),
    target_modules=NAMES | st.just("all-linear"),
    exclude_modules=st.none() | NAMES,
    alpha_pattern=st.dictionaries(st.just("query"), st.floats(1, 9)),
    bias=st.sampled_from(["none", "all", "lsr_only"]),
    modules_to_save=st.none() | st.just(["classifier"]),
)
def test_a_saved_configuration_comes_back_equal(tmp_path_factory, family, **fields):
    config = LsrConfig(**family, **fields)
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(str(folder))
    loaded = PeftConfig.from_pretrained(str(folder))
    assert type(loaded) is LsrConfig
    loaded.inference_mode = config.inference_mode
    assert loaded == config
    assert LsrConfig.from_pretrained(str(folder)).folder == folder


@pytest.mark.parametrize("targets", ["all-linear", ["value", "query", "output.dense", "key"]], ids=str)
def test_names_are_written_in_order_whatever_the_order_of_sets(targets):
    """Sets have another order in each process."""
    fields = {"target_modules": targets, "exclude_modules": ["pooler.dense", "embeddings"], "separation_rank": 1}
    config = LsrConfig(task_type="SEQ_CLS", **fields)
    get_peft_model(tiny("bert"), config)
    written = config.to_dict()
    for name in ("target_modules", "exclude_modules"):
        assert isinstance(written[name], list)
        assert written[name] == sorted(written[name])


@pytest.mark.parametrize("init", ["random", "principal"])
def test_what_was_made_is_written_and_the_object_can_start_a_second_model(init):
    config = LsrConfig(separation_rank=2, init_weights=init, seed=0)
    model = get_peft_model(tiny("bert"), config)
    assert model.peft_config["default"] is config
    first = model.state_dict()
    written = config.to_dict()
    assert written["init_weights"] == init
    widths = {"out_features": 24, "in_features": 24}
    shapes = {"out_shape": (6, 4), "in_shape": (6, 4)}
    assert written["resolved"]["usual"] == widths | shapes
    assert (config.resolved, config.init_weights) == (None, init)
    second = get_peft_model(tiny("bert"), config).state_dict()
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_the_split_of_a_file_is_used_and_not_a_new_one(tmp_path):
    get_peft_model(tiny("bert"), LsrConfig(separation_rank=2, seed=0)).save_pretrained(str(tmp_path))
    edit(tmp_path / "adapter_config.json", lambda fields: fields["resolved"]["usual"].update(in_shape=[4, 6]))
    with pytest.raises(RuntimeError, match="size mismatch"):  # the file's factors are those of the other split
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path))


def test_a_file_of_before_with_frames_of_its_own_is_read_as_one_of_now(tmp_path):
    model = CASES["shared"].stirred()
    model.save_pretrained(str(tmp_path))
    edit(tmp_path / "adapter_config.json", lambda held: held["resolved"].update(frames_hash=None), frames="own")
    with warnings.catch_warnings(action="error"):  # such as PEFT's of keys that it does not know
        assert "frames" not in PeftConfig.from_pretrained(str(tmp_path)).to_dict()
    assert read_contents(tmp_path).updates.keys() == find_lsr_layers(model).keys()
    assert logits(PeftModel.from_pretrained(tiny("distilbert"), str(tmp_path))).equal(logits(model))


MISTAKES = [
    ({"separation_rank": -1}, "separation_rank must be >= 1, got -1"),
    ({"init_weights": "warm"}, "init_weights: 'warm' is now called 'warm_start'; change it, in a file adapter_conf"),
    (
        {"init_weights": "update"},
        "init_weights: 'update' is now called 'lora_update'; change it, in a file adapter_conf",
    ),
    ({"init_weights": "rowspace"}, f"init_weights must be a bool or one of {WORDS}, got 'rowspace'"),
    ({"share": "layers"}, "share='layers' needs train to be one of ['core', 'all'], got 'factors'"),
    ({"core": "diagonal"}, "core='diagonal' needs train to be one of ['core', 'all'], got 'factors'"),
    ({"frames": "./other"}, "frames='./other' of an early adapter is not supported: export it as LoRA"),
    ({"alpha_pattern": {"key": 0}}, "alpha_pattern['key'] must be a positive number of at most 1e+30, got 0"),
    ({"target_modules": "*"}, "target_modules: '*' is not a valid regular expression"),
    ({"rank_pattern": {"[z-a]": (1, 1)}}, "rank_pattern: '[z-a]' is not a valid regular expression"),
    ({"target_modules": ".*query", "layers_to_transform": [0]}, "layers_to_transform needs target_modules to be a l"),
]


@pytest.mark.parametrize(("fields", "message"), MISTAKES)
def test_a_value_out_of_bounds_is_refused_with_what_is_allowed(fields, message):
    refused(LsrConfig, kind=ValueError, says=message, **fields)


def test_few_numbers_are_not_taken_that_stand_for_large_matrices():
    form = FactorShapes((200, 200), (200, 200), (200, 200), 1, 40_000, 40_000)
    config = LsrConfig(rank_shape=(200, 200), separation_rank=1)
    config.resolved = Resolved.of({"layer": form})
    tensors = {"layer": {"factor_A1": torch.empty(form.parameters)}}
    says = "layer 'layer': its A and B have 3,200,000,000 entries; at most 1,07"
    refused(check_room, config, tensors, kind=ValueError, says=says)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k|v)_proj",
        r"model\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj))",
        rf".*layers\.({'|'.join(map(str, range(24)))})\..*_proj",
        "|".join(rf"^model\.layers\.{layer}\.mlp\.experts\.{at}\.up" for layer in range(48) for at in range(128)),
    ],
    ids=["endings", "a block", "layers", "every name"],
)
def test_a_pattern_that_takes_no_time_is_taken(pattern):
    assert LsrConfig(target_modules=pattern, rank_pattern={pattern: (1, 1)}).target_modules == pattern


WRONG_NAMES = [
    ({"target_modules": ["query", "valeu"]}, "target_modules: no layer is named 'valeu'; linear layers: value, key, "),
    ({"target_modules": ["query", "classifier"]}, "target_modules: 'classifier' is part of the head, or of another"),
    ({"modules_to_save": ["clasifier"]}, "modules_to_save: no module is named 'clasifier'; modules: classifier, "),
    ({"alpha_pattern": {"intermediate.dense": 2}}, "alpha_pattern: 'intermediate.dense' matches no adapted layer; "),
    ({"target_modules": ["query"], "layers_to_transform": [0, 2]}, "layers_to_transform: no adapted layer has the in"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG_NAMES)
def test_a_mistake_is_refused_with_its_name_and_what_is_there(fields, message):
    base = tiny("bert")
    refused(get_peft_model, base, CASES["two factors"].config(**fields), kind=ValueError, says=message)
    assert not any(isinstance(module, LsrLinear) for module in base.modules())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 4), "it must be Linear or Conv1D, got Embedding"),
        (nn.Conv1d(4, 4, 1), "it must be Linear or Conv1D, got Conv1d"),
        (nn.MultiheadAttention(4, 2).out_proj, "nn.MultiheadAttention reads its weight but never calls it"),
    ],
    ids=["embedding", "convolution", "attention output"],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name_and_type(layer, reason):
    says = f"layer 'block.part' cannot be adapted: {reason}"
    refused(LsrLinear, layer, "default", "block.part", kind=TypeError, says=says)


READ_ONLY = [
    (MambaConfig(hidden_size=12, num_hidden_layers=1, state_size=4, vocab_size=9), "MambaMixer", "dt_proj"),
    (
        Mamba2Config(hidden_size=12, num_hidden_layers=1, num_heads=3, head_dim=8, vocab_size=9),
        "Mamba2Mixer",
        "out_proj",
    ),
]


@pytest.mark.parametrize(("config", "parent", "last"), READ_ONLY, ids=["mamba", "mamba2"])
def test_a_layer_whose_weight_is_read_instead_of_called_is_refused(config, parent, last):
    base = AutoModelForCausalLM.from_config(config)
    says = f"layer 'backbone.layers.0.mixer.{last}' cannot be adapted: {parent} reads its weight but does not always"
    targets = LsrConfig(target_modules=["in_proj", last], rank_shape=(2,))
    refused(get_peft_model, base, targets, kind=TypeError, says=says)
    assert not any(isinstance(module, LsrLinear) for module in base.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_all_linear_layers_of_some_indices_are_those_alone(name, tmp_path):
    fields = {"task_type": "SEQ_CLS", "rank_shape": (2,), "target_modules": "all-linear"}
    every = find_lsr_layers(get_peft_model(tiny(name), LsrConfig(**fields))).keys()
    model = get_peft_model(tiny(name), LsrConfig(**fields, layers_to_transform=[1]))
    assert find_lsr_layers(model).keys() == {layer for layer in every if ".1." in layer} != set()
    model.save_pretrained(str(tmp_path))
    assert find_lsr_layers(PeftModel.from_pretrained(tiny(name), str(tmp_path))).keys() == find_lsr_layers(model).keys()
