"""Configurations: what is written comes back, and a mistake is rejected by its name before a model is changed."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

from lsr import LsrConfig
from tests import tiny

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))
NAMES = st.lists(st.sampled_from(["query", "key", "value", "output.dense"]), min_size=1, unique=True)
CORES = {
    "train": st.sampled_from(["core", "all"]),
    "rank_shape": st.just((3,)),
    "share": st.sampled_from(["none", "layers"]),
    "core": st.sampled_from(["full", "diagonal"]),
}
SUMS = {
    "rank_shape": SHAPES,
    "separation_rank": st.integers(1, 64),
    "rank_pattern": st.dictionaries(st.just("query"), SHAPES),
}
COMMON = {
    "alpha": st.floats(0.1, 100),
    "init_weights": st.sampled_from([True, False, "random", "principal", "gradient", "lora_update", "warm_start"]),
    "seed": st.none() | st.integers(0, 2**40),
    "dropout": st.floats(0, 0.9),
    "target_modules": NAMES | st.just("all-linear"),
    "exclude_modules": st.none() | NAMES,
    "alpha_pattern": st.dictionaries(st.just("query"), st.floats(1, 9)),
    "modules_to_save": st.none() | st.just(["classifier"]),
}


@given(st.fixed_dictionaries(COMMON | SUMS) | st.fixed_dictionaries(COMMON | CORES))
def test_a_saved_configuration_comes_back_equal(tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("config")
    config = LsrConfig(**fields, inference_mode=True)
    config.save_pretrained(str(folder))
    loaded = PeftConfig.from_pretrained(str(folder))
    assert type(loaded) is LsrConfig
    assert loaded == config


def test_names_are_written_in_order():
    """Sets have another order in each process."""
    names = ["value", "query", "output.dense", "key"]
    written = LsrConfig(target_modules=names, exclude_modules=names).to_dict()
    assert written["target_modules"] == written["exclude_modules"] == sorted(names)


def test_a_saved_adapter_names_all_its_layers_in_order(tmp_path):
    config = LsrConfig(target_modules="all-linear", rank_shape=(2,), task_type="SEQ_CLS")
    tiny.adapted("bert", config).save_pretrained(str(tmp_path))
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) > 2


@pytest.mark.parametrize("init", ["random", "principal"])
def test_a_saved_adapter_says_how_it_began(init, tmp_path):
    config = LsrConfig(rank_shape=(2,), init_weights=init, seed=0)
    tiny.adapted("bert", config).save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_weights"] == init


MISTAKES = [
    ({"rank_shape": (2, 2, 2)}, "rank_shape"),
    ({"rank_shape": (0,)}, "rank_shape"),
    ({"rank_pattern": {"query": (2, -1)}}, "rank_pattern"),
    ({"train": "core"}, "rank_shape"),
    ({"separation_rank": -1}, "separation_rank"),
    ({"alpha": -2}, "alpha"),
    ({"alpha": 1e31}, "alpha"),
    ({"alpha_pattern": {"key": 0}}, "alpha_pattern"),
    ({"dropout": 1}, "dropout"),
    ({"init_weights": "rowspace"}, "warm_start"),
    ({"train": "bases"}, "factors"),
    ({"share": "layers"}, "share"),
    ({"core": "diagonal"}, "core"),
    ({"bias": "lora_only"}, "lsr_only"),
    ({"target_modules": "*"}, "target_modules"),
    ({"layers_pattern": "layer"}, "layers_to_transform"),
    ({"target_modules": ".*query", "layers_to_transform": [0]}, "layers_to_transform"),
    ({"target_modules": ["query", "valeu"]}, "valeu.*value"),
    ({"target_modules": ["query", "classifier"]}, "classifier.*head"),
    ({"exclude_modules": ["kye"]}, "kye.*key"),
    ({"modules_to_save": ["clasifier"]}, "clasifier.*classifier"),
    ({"alpha_pattern": {"intermediate.dense": 2}}, "alpha_pattern.*intermediate"),
    ({"target_modules": ["query"], "layers_to_transform": [0, 2]}, "layers_to_transform.* 2"),
    ({"rank_shape": (25,)}, "query.*24"),
    ({"rank_shape": (2, 1), "separation_rank": 16}, "separation_rank"),
]


@pytest.mark.parametrize(("fields", "key"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_rejected_by_its_name_and_the_model_stays_plain(fields, key):
    base = tiny.base_model("bert")
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=key) as caught:
        get_peft_model(base, LsrConfig(task_type="SEQ_CLS", **fields))
    assert len(str(caught.value).splitlines()) == 1
    assert [name for name, _ in base.named_modules()] == names


EXPERTS = [f"^model.layers.{layer}.mlp.experts.{at}.up" for layer in range(48) for at in range(128)]
REGULAR = {
    "endings": r".*\.(q|k|v)_proj",
    "a block": r"model\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj))",
    "an optional part": r".*\.(self_)?attention\.query",
    "layers": rf".*layers\.({'|'.join(map(str, range(24)))})\..*_proj",
    "every name": "|".join(EXPERTS),
}


@pytest.mark.parametrize("pattern", REGULAR.values(), ids=REGULAR)
def test_regular_expressions_that_people_use_are_taken(pattern):
    config = LsrConfig(target_modules=pattern, rank_pattern={pattern: (1, 1)})
    assert config.target_modules == pattern


def integers():
    """Return a model whose weight holds codes, as quantized ones of other libraries do."""
    layer = nn.Linear(4, 4)
    codes = torch.zeros(4, 4, dtype=torch.int8)
    layer.weight = nn.Parameter(codes, requires_grad=False)
    return nn.ModuleDict({"part": layer})


MAMBA = {"hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 9}
LAYERS = {
    "embedding": (lambda: nn.ModuleDict({"part": nn.Embedding(4, 4)}), "part"),
    "convolution": (lambda: nn.ModuleDict({"part": nn.Conv1d(4, 4, 1)}), "part"),
    "output of attention": (lambda: nn.MultiheadAttention(4, 2), "out_proj"),
    "codes": (integers, "part"),
    "mamba": (lambda: AutoModelForCausalLM.from_config(MambaConfig(state_size=4, **MAMBA)), "dt_proj"),
    "mamba 2": (
        lambda: AutoModelForCausalLM.from_config(Mamba2Config(num_heads=3, head_dim=8, **MAMBA)),
        "out_proj",
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_on_which_an_adapter_would_have_no_effect_is_rejected_by_name(kind):
    make, name = LAYERS[kind]
    base = make()
    with pytest.raises(TypeError, match=name):
        get_peft_model(base, LsrConfig(target_modules=[name], rank_shape=(2,)))
    assert not any("lsr" in name for name, _ in base.named_modules())


def test_a_file_for_other_widths_is_rejected_by_the_layer(tmp_path):
    tiny.adapted("bert", LsrConfig(separation_rank=2)).save_pretrained(str(tmp_path))
    wider = tiny.base_model("bert", hidden_size=32)
    with pytest.raises((ValueError, RuntimeError), match="query"):
        PeftModel.from_pretrained(wider, str(tmp_path))
