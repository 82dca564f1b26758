import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, get_peft_model

from lsr import LsrConfig
from lsr.tuner import layer
from lsr.tuner.config import INITIALISATIONS
from lsr.tuner.model import start_factors
from tests.tiny_models import tiny

WORDS = list(INITIALISATIONS)

ROOT = Path(__file__).parents[3]
SHAPES = st.lists(st.integers(1, 8), min_size=2, max_size=3).map(tuple)
NAMES = st.lists(st.sampled_from(["query", "key", "value", "output.dense"]), min_size=1, unique=True)


# What is written comes back


@given(
    rank_shape=SHAPES,
    separation_rank=st.integers(1, 64),
    alpha=st.floats(0.1, 100),
    rank_stabilized=st.booleans(),
    init_weights=st.sampled_from([True, False, "random", "row_space"]),
    seed=st.none() | st.integers(0, 2**40),
    dropout=st.floats(0, 0.9),
    target_modules=NAMES | st.just("all-linear") | st.just(r".*\.(query|key)"),
    exclude_modules=st.none() | NAMES,
    rank_pattern=st.dictionaries(st.sampled_from(["query", r"layer\.0\..*"]), SHAPES),
    separation_rank_pattern=st.dictionaries(st.just("query"), st.integers(1, 8)),
    alpha_pattern=st.dictionaries(st.just("query"), st.floats(1, 9)),
    bias=st.sampled_from(["none", "all", "lsr_only"]),
    modules_to_save=st.none() | st.just(["classifier"]),
)
def test_a_saved_configuration_comes_back_equal(tmp_path_factory, **fields):
    config = LsrConfig(**fields)
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(str(folder))
    loaded = PeftConfig.from_pretrained(str(folder))
    assert type(loaded) is LsrConfig
    loaded.inference_mode = config.inference_mode
    assert loaded == config


def test_shapes_come_back_as_tuples(tmp_path):
    shapes = {"rank_shape": (2, 2), "in_shape": (6, 4), "out_shape": (8, 5), "rank_pattern": {"query": (1, 4)}}
    LsrConfig(**shapes).save_pretrained(str(tmp_path))
    loaded = LsrConfig.from_pretrained(str(tmp_path))
    assert {name: getattr(loaded, name) for name in shapes} == shapes


# Four layers: from twenty targets on, PEFT shortens the list of all linear layers.
SAVE_ADAPTERS = """
import sys
from peft import get_peft_model
from transformers import BertForSequenceClassification
from lsr import LsrConfig
from tests.tiny_models import CONFIGS
CONFIGS["bert"].num_hidden_layers = 4
for name, targets in {"all": "all-linear", "usual": None, "list": ["value", "query", "output.dense", "key"]}.items():
    config = LsrConfig(
        task_type="SEQ_CLS", separation_rank=1, target_modules=targets, exclude_modules=["pooler.dense", "embeddings"]
    )
    get_peft_model(BertForSequenceClassification(CONFIGS["bert"]), config).save_pretrained(f"{sys.argv[1]}/{name}")
"""


def test_every_hash_seed_writes_the_same_bytes(tmp_path):
    seeds = ("0", "1", "2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_ADAPTERS, str(tmp_path / seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        for seed in seeds
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    for name in ("all", "usual", "list"):
        assert len({(tmp_path / seed / name / "adapter_config.json").read_bytes() for seed in seeds}) == 1


def test_name_sets_are_written_in_order():
    fields = LsrConfig(target_modules=["value", "key", "query"], exclude_modules=["b", "a"]).to_dict()
    assert fields["target_modules"] == ["key", "query", "value"]
    assert fields["exclude_modules"] == ["a", "b"]


def test_heads_that_peft_appends_again_are_written_once():
    config = LsrConfig(modules_to_save=["classifier", "score", "classifier", "score"])
    assert config.to_dict()["modules_to_save"] == ["classifier", "score"]


# The name of the initialisation


@pytest.mark.parametrize("init", [True, False, "random", "row_space"])
def test_before_injection_the_initialisation_is_written_as_it_is(init):
    assert LsrConfig(init_weights=init).to_dict()["init_weights"] is init


@pytest.mark.parametrize("init", ["random", "row_space", "principal"])
def test_after_injection_a_recipe_says_that_the_factors_have_their_start(init):
    config = LsrConfig(separation_rank=2, init_weights=init)
    written = get_peft_model(tiny("bert"), config).peft_config["default"].to_dict()
    assert (written["init_weights"], written["recipe"]) == (init, {})


def test_factors_that_wait_for_a_file_are_never_started(monkeypatch):
    monkeypatch.setattr(layer, "begin", lambda *_, **__: pytest.fail("a decomposition was computed"))
    model = get_peft_model(tiny("bert"), LsrConfig(separation_rank=2, init_weights="row_space"), low_cpu_mem_usage=True)
    assert {parameter.device.type for name, parameter in model.named_parameters() if ".lsr_" in name} == {"meta"}
    assert model.peft_config["default"].to_dict()["recipe"] is None


def test_a_configuration_starts_a_second_model_as_it_did_the_first():
    config = LsrConfig(separation_rank=2, init_weights="row_space", seed=0)
    first, second = (get_peft_model(tiny("bert"), config).state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
    assert config.init_weights == "row_space"


def test_a_deferred_start_has_no_recipe_until_it_is_finished():
    model = get_peft_model(tiny("bert"), LsrConfig(separation_rank=2, init_weights="row_space", deferred=True))
    config = model.peft_config["default"]
    steps = start_factors(model)
    next(steps)
    assert (config.to_dict()["recipe"], config.deferred) == (None, True)
    assert len(list(steps)) == 3
    assert (config.to_dict()["recipe"], config.deferred) == ({}, False)


# The scaling


@pytest.mark.parametrize(("stabilized", "expected"), [(False, 16 / 8), (True, 16 / 8**0.5)])
@pytest.mark.parametrize("separation_rank", [1, 16])
def test_the_scaling_counts_the_true_rank_and_never_the_terms(stabilized, expected, separation_rank):
    config = LsrConfig(rank_shape=(2, 4), alpha=16, rank_stabilized=stabilized, separation_rank=separation_rank)
    assert config.scaling(config.rank_shape, config.alpha) == pytest.approx(expected)


# Mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_shape": (2,)}, "rank_shape must hold two or more ranks >= 1, got [2]"),
        ({"rank_shape": ()}, "rank_shape must hold two or more ranks >= 1, got []"),
        ({"rank_shape": (2, 0)}, "rank_shape must hold two or more ranks >= 1, got [2, 0]"),
        ({"rank_pattern": {"key": (0, 2)}}, "rank_pattern['key'] must hold two or more ranks >= 1, got [0, 2]"),
        ({"separation_rank": 0}, "separation_rank must be >= 1 or auto, got 0"),
        ({"separation_rank_pattern": {"key": -1}}, "separation_rank_pattern['key'] must be >= 1, got -1"),
        ({"in_shape": (24,)}, "in_shape must hold 2 sizes >= 1, as rank_shape does, got [24]"),
        ({"out_shape": (4, 3, 2)}, "out_shape must hold 2 sizes >= 1, as rank_shape does, got [4, 3, 2]"),
        ({"out_shape": (0, 9)}, "out_shape must hold 2 sizes >= 1, as rank_shape does, got [0, 9]"),
        (
            {"init_weights": "rowspace"},
            f"init_weights must be a bool or one of {WORDS}, got 'rowspace'",
        ),
        ({"init_weights": None}, f"init_weights must be a bool or one of {WORDS}, got None"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
        ({"bias": "lora_only"}, "bias must be 'none', 'all' or 'lsr_only', got 'lora_only'"),
        (
            {"target_modules": ".*query", "layers_to_transform": [0]},
            "layers_to_transform needs target_modules to be a list, got the pattern '.*query'",
        ),
        (
            {"target_modules": ".*query", "layers_pattern": "layer"},
            "layers_pattern needs target_modules to be a list, got the pattern '.*query'",
        ),
        ({"layers_pattern": "layer"}, "layers_pattern needs layers_to_transform, got None"),
        ({"target_modules": "(query"}, "target_modules: '(query' is no regular expression"),
        ({"exclude_modules": "[a"}, "exclude_modules: '[a' is no regular expression"),
        ({"alpha_pattern": {"*": 2}}, "alpha_pattern: '*' is no regular expression"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LsrConfig(**fields)


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match="r_shape"):
        LsrConfig(r_shape=(2, 2))


def test_every_field_says_what_it_is():
    base = set(PeftConfig.__dataclass_fields__)
    fields = {name: field for name, field in LsrConfig.__dataclass_fields__.items() if name not in base}
    assert [name for name, field in fields.items() if not field.metadata.get("help")] == []
