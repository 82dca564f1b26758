import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, get_peft_model

from lsr import LsrConfig
from lsr.algebra.shapes import Form
from lsr.init import INITIALIZATIONS
from lsr.tuner.config import override
from lsr.tuner.resolved import LayerShapes
from tests.capabilities.models import tiny

WORDS = list(INITIALIZATIONS)

ROOT = Path(__file__).parents[3]
SHAPES = st.lists(st.integers(1, 8), min_size=2, max_size=3).map(tuple)
NAMES = st.lists(st.sampled_from(["query", "key", "value", "output.dense"]), min_size=1, unique=True)


# What is written comes back


@given(
    rank_shape=SHAPES,
    separation_rank=st.integers(1, 64),
    alpha=st.floats(0.1, 100),
    init_weights=st.sampled_from([True, False, *WORDS]),
    train=st.sampled_from(["factors", "first"]),
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


@given(
    rank_shape=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    init_weights=st.sampled_from([True, False, "random", "principal", "gradient"]),
    share=st.sampled_from(["none", "layers"]),
    choice=st.just({"train": "all"})
    | st.fixed_dictionaries(
        {
            "train": st.just("core"),
            "frames": st.sampled_from(["own", "../frames", "someone/frames"]),
            "frames_dtype": st.sampled_from(["float32", "bfloat16", "int8"]),
        }
    ),
)
def test_a_saved_configuration_with_a_core_comes_back_equal(tmp_path_factory, choice, **fields):
    config = LsrConfig(**fields, **choice)
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(str(folder))
    loaded = PeftConfig.from_pretrained(str(folder))
    loaded.inference_mode = config.inference_mode
    assert loaded == config
    assert LsrConfig.from_pretrained(str(folder)).folder == folder


@pytest.mark.parametrize(("rank_shape", "terms"), [((4,), 1), ((2, 2), 16), ((2, 2, 2), 16)])
def test_without_a_number_of_terms_dense_sides_have_one(rank_shape, terms):
    assert LsrConfig(rank_shape=rank_shape).separation_rank == terms


def test_shapes_come_back_as_tuples(tmp_path):
    shapes = {"rank_shape": (2, 2), "in_shape": (6, 4), "out_shape": (8, 5), "rank_pattern": {"query": (1, 4)}}
    LsrConfig(**shapes).save_pretrained(str(tmp_path))
    loaded = LsrConfig.from_pretrained(str(tmp_path))
    assert {name: getattr(loaded, name) for name in shapes} == shapes


# Four layers: from twenty targets on, PEFT shortens the list of all linear layers.
SAVE_ADAPTERS = """
import sys
import torch
from peft import get_peft_model
from transformers import BertForSequenceClassification
from lsr import LsrConfig
from tests.capabilities.models import CONFIGS
CONFIGS["bert"].num_hidden_layers = 4
for name, targets in {"all": "all-linear", "usual": None, "list": ["value", "query", "output.dense", "key"]}.items():
    config = LsrConfig(
        task_type="SEQ_CLS", separation_rank=1, target_modules=targets, exclude_modules=["pooler.dense", "embeddings"],
        init_weights="principal", seed=0,
    )
    torch.manual_seed(0)
    get_peft_model(BertForSequenceClassification(CONFIGS["bert"]), config).save_pretrained(f"{sys.argv[1]}/{name}")
"""


def test_every_hash_seed_writes_the_same_bytes(tmp_path):
    seeds = ("1", "2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_ADAPTERS, str(tmp_path / seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        for seed in seeds
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for name in ("all", "usual", "list"):
        assert len({(tmp_path / seed / name / "adapter_config.json").read_bytes() for seed in seeds}) == 1


def test_name_sets_are_written_in_order():
    fields = LsrConfig(target_modules=["value", "key", "query"], exclude_modules=["b", "a"]).to_dict()
    assert fields["target_modules"] == ["key", "query", "value"]
    assert fields["exclude_modules"] == ["a", "b"]


def test_heads_that_peft_appends_again_are_written_once():
    config = LsrConfig(modules_to_save=["classifier", "score", "classifier", "score"])
    assert config.to_dict()["modules_to_save"] == ["classifier", "score"]


# The name of the initialization


@pytest.mark.parametrize("init", [True, False, "random", "principal"])
def test_before_injection_the_initialization_is_written_as_it_is(init):
    assert LsrConfig(init_weights=init).to_dict()["init_weights"] is init


@pytest.mark.parametrize("init", WORDS)
def test_what_was_made_is_written_and_the_object_can_start_a_second_model(init):
    config = LsrConfig(separation_rank=2, init_weights=init, seed=0)
    first = get_peft_model(tiny("bert"), config).state_dict()
    written = config.to_dict()
    assert (written["init_weights"], config.init_weights) == (init, init)
    assert written["resolved"]["usual"] == {
        "out_features": 24,
        "in_features": 24,
        "out_shape": (6, 4),
        "in_shape": (6, 4),
    }
    assert len(written["resolved"]["base_hashes"]) == (4 if INITIALIZATIONS[init].folds else 0)
    assert not config.is_saved
    second = get_peft_model(tiny("bert"), config).state_dict()
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_a_configuration_that_was_made_comes_back_as_one_of_a_file(tmp_path):
    fields = {"target_modules": ["query", "intermediate.dense"], "init_weights": "principal", "separation_rank": 2}
    config = LsrConfig(**fields, seed=0)
    get_peft_model(tiny("bert"), config).save_pretrained(str(tmp_path / "one"))
    loaded = LsrConfig.from_pretrained(str(tmp_path / "one"))
    assert loaded.is_saved
    assert loaded.resolved == config._made
    assert len(loaded.resolved.others) == len(loaded.resolved.base_hashes) / 2 == 2
    loaded.save_pretrained(str(tmp_path / "two"))
    one, two = ((tmp_path / copy / "adapter_config.json").read_bytes() for copy in ("one", "two"))
    assert one == two


def test_factors_that_wait_for_a_file_are_never_initialized(monkeypatch):
    fail = INITIALIZATIONS["principal"]._replace(start=lambda _: pytest.fail("a decomposition was computed"))
    monkeypatch.setitem(INITIALIZATIONS, "principal", fail)
    model = get_peft_model(tiny("bert"), LsrConfig(separation_rank=2, init_weights="principal"), low_cpu_mem_usage=True)
    assert {parameter.device.type for name, parameter in model.named_parameters() if ".lsr_" in name} == {"meta"}


# An adapter whose factors are there


def form(rank_shape, separation_rank, width=24):
    return Form(rank_shape, (6, 4), (6, 4), separation_rank, width, width)


def test_with_layers_the_most_frequent_values_are_usual_and_the_others_patterns():
    forms = {"a.query": form((2, 2), 3), "b.query": form((2, 2), 3), "a.value": form((4, 2), 5, width=23)}
    made = LsrConfig(train="first", init_weights="principal", in_shape=(5, 5), seed=3).with_layers(
        forms, {"a.query": 2.0, "b.query": 2.0, "a.value": 1.0}
    )
    assert (made.rank_shape, made.separation_rank, made.alpha) == ((2, 2), 3, 8)
    for pattern, usual, expected in (
        (made.rank_pattern, made.rank_shape, (4, 2)),
        (made.separation_rank_pattern, made.separation_rank, 5),
        (made.alpha_pattern, made.alpha, 8),
    ):
        assert override(pattern, "a.value", usual) == expected
        assert override(pattern, "a.query", usual) == override(pattern, "b.query", usual) == usual
    assert (made.train, made.init_weights, made.in_shape, made.seed) == ("factors", True, None, 3)
    assert made.is_saved
    assert made.resolved.layer("a.value") == LayerShapes(23, 23, (6, 4), (6, 4))
    assert made.resolved.base_hashes == {}


# Mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_shape": 4}, "rank_shape must be a list or tuple of numbers, got 4"),
        ({"rank_pattern": {"key": 4}}, "rank_pattern['key'] must be a list or tuple of numbers, got 4"),
        ({"in_shape": 24}, "in_shape must be a list or tuple of numbers, got 24"),
        ({"in_shape": ("a", 4)}, "in_shape must hold 2 sizes >= 1, as rank_shape does, got ['a', 4]"),
        ({"rank_shape": (0,)}, "rank_shape must hold one or more ranks >= 1, got [0]"),
        ({"rank_shape": ()}, "rank_shape must hold one or more ranks >= 1, got []"),
        ({"rank_shape": (2, 0)}, "rank_shape must hold one or more ranks >= 1, got [2, 0]"),
        ({"rank_pattern": {"key": (0, 2)}}, "rank_pattern['key'] must hold one or more ranks >= 1, got [0, 2]"),
        ({"separation_rank": 0}, "separation_rank must be >= 1, got 0"),
        ({"separation_rank_pattern": {"key": -1}}, "separation_rank_pattern['key'] must be >= 1, got -1"),
        ({"in_shape": (24,)}, "in_shape must hold 2 sizes >= 1, as rank_shape does, got [24]"),
        ({"out_shape": (4, 3, 2)}, "out_shape must hold 2 sizes >= 1, as rank_shape does, got [4, 3, 2]"),
        ({"out_shape": (0, 9)}, "out_shape must hold 2 sizes >= 1, as rank_shape does, got [0, 9]"),
        (
            {"init_weights": "rowspace"},
            f"init_weights must be a bool or one of {WORDS}, got 'rowspace'",
        ),
        ({"init_weights": None}, f"init_weights must be a bool or one of {WORDS}, got None"),
        ({"init_weights": "activation"}, f"init_weights must be a bool or one of {WORDS}, got 'activation'"),
        ({"separation_rank": "auto"}, "separation_rank must be >= 1, got 'auto'"),
        ({"train": "frames"}, "train must be one of ['factors', 'first', 'core', 'all'], got 'frames'"),
        ({"share": "all"}, "share must be one of ['none', 'layers'], got 'all'"),
        (
            {"train": "core", "frames_dtype": "int4"},
            "frames_dtype must be one of ['float32', 'bfloat16', 'int8', 'sign'], got 'int4'",
        ),
        (
            {"share": "layers"},
            "share='layers' needs train to be one of ['core', 'all'], got 'factors': without a core of its own each "
            "layer would have the same update",
        ),
        ({"share": "layers", "train": "first"}, "share='layers' needs train to be one of ['core', 'all'], got 'first'"),
        (
            {"rank_shape": (4,), "separation_rank": 2},
            "separation_rank must be 1 if rank_shape holds one rank, because A and B are then dense, got 2",
        ),
        *(
            (
                {"train": train, **fields},
                f"{name}={value!r} needs train='core': trained factors belong to the adapter and are in float32, got "
                f"train={train!r}",
            )
            for train in ("factors", "first", "all")
            for fields in ({"frames": "./other"}, {"frames_dtype": "bfloat16"}, {"frames_dtype": "int8"})
            for name, value in fields.items()
        ),
        ({"alpha": 0}, "alpha must be a positive number, got 0"),
        ({"alpha": -4.0}, "alpha must be a positive number, got -4.0"),
        ({"alpha_pattern": {"key": 0}}, "alpha_pattern['key'] must be a positive number, got 0"),
        ({"dropout": "0.1"}, "dropout must be in [0, 1), got '0.1'"),
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
        ({"target_modules": "(query"}, "target_modules: '(query' is not a valid regular expression"),
        ({"exclude_modules": "[a"}, "exclude_modules: '[a' is not a valid regular expression"),
        ({"alpha_pattern": {"*": 2}}, "alpha_pattern: '*' is not a valid regular expression"),
        ({"frames": None}, "frames must be 'own' or the folder or hub repository of frames, got None"),
        ({"seed": "x"}, "seed must be an integer or None, got 'x'"),
        ({"seed": 1.5}, "seed must be an integer or None, got 1.5"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LsrConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"r_shape": (2, 2)},
        {"align": True},
        {"residual": "fold"},
        {"deferred": True},
        {"rank_stabilized": True},
        {"aspect": 2},
        {"budget": 900},
        {"recipe": {}},
    ],
    ids=str,
)
def test_an_unknown_field_is_refused(fields):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(fields))}'"):
        LsrConfig(**fields)


def test_every_field_says_what_it_is():
    base = set(PeftConfig.__dataclass_fields__)
    fields = {name: field for name, field in LsrConfig.__dataclass_fields__.items() if name not in base}
    assert [name for name, field in fields.items() if not field.metadata.get("help")] == []


def test_no_pattern_is_an_empty_one():
    assert LsrConfig(rank_pattern=None, separation_rank_pattern=None, alpha_pattern=None) == LsrConfig()


def test_a_path_of_frames_is_written_as_a_string(tmp_path):
    config = LsrConfig(rank_shape=(4,), train="core", frames=tmp_path)
    config.save_pretrained(str(tmp_path))
    assert LsrConfig.from_pretrained(str(tmp_path)).frames == str(tmp_path)


def test_the_integers_of_numpy_are_integers():
    config = LsrConfig(rank_shape=[np.int64(2), 2], in_shape=(np.int32(4), 6))
    assert (config.rank_shape, config.in_shape) == ((2, 2), (4, 6))
    assert {type(value) for value in (*config.rank_shape, *config.in_shape)} == {int}


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ({"rank_pattern": {"query": (4,)}}, {"query": 1, "value": 16}),
        ({"rank_shape": (4,), "rank_pattern": {"query": (2, 2)}}, {"query": 16, "value": 1}),
        ({"separation_rank": 3, "rank_pattern": {"query": (4,)}}, {"query": 1, "value": 3}),
        (
            {"rank_shape": (4,), "rank_pattern": {"query": (2, 2)}, "separation_rank_pattern": {"query": 2}},
            {"query": 2, "value": 1},
        ),
    ],
)
def test_a_layer_that_alone_is_dense_or_alone_is_not_has_the_default_number_of_terms(fields, terms):
    config = LsrConfig(**fields)
    assert {name: config.terms(f"layer.0.{name}") for name in terms} == terms
