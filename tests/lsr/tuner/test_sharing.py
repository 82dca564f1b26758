"""Factors that layers share, and cores: what is one and the same object, what counts, what is stored, what is refused.

What these have in common with every adapter is in test_citizenship.py and test_peft.py, their formulas in
test_special_cases.py.
"""

import copy
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.tuner.adapter import Sizes
from lsr.tuner.linear import adapted_layers
from lsr.tuner.start import initialize_factors
from tests.capabilities.checks import stir, train, trainable
from tests.capabilities.models import LABELS, logits, tiny, tokens
from tests.lsr.subjects import FAMILY

pytestmark = pytest.mark.usefixtures("remembered_fits")

USUAL = {"rank_shape": (4,), "alpha": 7, "seed": 0, "train": "core", "share": "layers", "init_weights": "principal"}
QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
VALUES = [f"bert.encoder.layer.{i}.attention.self.value" for i in (0, 1)]
BATCH = {**tokens(), "labels": torch.arange(4) % LABELS}
SHARED = {name: subject for name, subject in FAMILY.items() if subject.config().share == "layers"}
each_shared = pytest.mark.parametrize("subject", SHARED.values(), ids=SHARED)


def adapted(name="bert", **fields):
    return get_peft_model(tiny(name), LsrConfig(**{**USUAL, **fields})).eval()


def adapters(model, name="default"):
    return {key: layer.adapter(name) for key, layer in adapted_layers(model).items() if name in layer.lsr_adapters}


def tensors_of(model):
    return {key: value for key, value in model.state_dict().items() if ".lsr_" in key}


# Who shares with whom


@each_shared
def test_the_first_layer_of_a_kind_owns_the_factors_and_the_others_hold_them(subject):
    model = subject.fresh()
    first, second = (
        {re.sub(r"\d+", "*", name): adapter for name, adapter in adapters(model).items() if f".{i}." in name}
        for i in (0, 1)
    )
    assert first.keys() == second.keys()
    for kind, adapter in first.items():
        assert adapter.frames is adapter
        assert second[kind].frames is adapter
        assert second[kind].core is not adapter.core
    assert len({id(adapter) for adapter in first.values()}) == len(first)


@each_shared
def test_state_dict_and_file_hold_what_is_shared_once(subject, tmp_path):
    model = subject.stirred()
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    own = {key.replace(".lsr_adapters.default.", ".lsr_adapters.") for key in tensors_of(model)}
    assert {key for key in written if ".lsr_" in key} == own
    parts = [key.rpartition(".lsr_adapters.") for key in own]
    assert {name for name, _, part in parts if ".1." in name} == {n.replace(".0.", ".1.") for n, _, _ in parts}
    assert {part for name, _, part in parts if ".1." in name} == {"core"}
    assert {part for name, _, part in parts if ".0." in name} >= {"core", "factor_A1", "factor_B1"}


def test_layers_of_other_shapes_are_of_kinds_of_their_own():
    """Two blocks of 12 and three of 20: what is called alike is shared among equal shapes alone."""

    class Block(nn.Module):
        def __init__(self, n, m):
            super().__init__()
            self.fc = nn.Linear(n, m)

        def forward(self, x):
            return self.fc(x)

    torch.manual_seed(0)
    blocks = nn.Sequential(Block(12, 12), Block(12, 12), Block(12, 20), Block(20, 20), Block(20, 20), Block(20, 20))
    config = LsrConfig(**{**USUAL, "target_modules": ["fc"], "layers_to_transform": None})
    with pytest.raises(ValueError, match=re.escape("there is one *.fc (20 x 12); use share='none'")):
        get_peft_model(copy.deepcopy(blocks), config)
    some = LsrConfig(**{**USUAL, "target_modules": ["0.fc", "1.fc", "3.fc", "4.fc", "5.fc"]})
    model = get_peft_model(blocks, some)
    found = adapters(model)
    owners = {name: next(key for key, one in found.items() if one is a.frames) for name, a in found.items()}
    assert owners == {"0.fc": "0.fc", "1.fc": "0.fc", "3.fc": "3.fc", "4.fc": "3.fc", "5.fc": "3.fc"}
    assert [started.name for started in initialize_factors(model)] == ["*.fc (12 x 12)", "*.fc (20 x 20)"]
    x = torch.randn(3, 12)
    stir(model)
    before = model(x)
    assert torch.equal(copy.deepcopy(model)(x), before)


def test_a_pattern_of_ranks_makes_kinds_too():
    model = adapted(rank_pattern={"query": (2,)})
    ranks = {name: adapter.core.shape for name, adapter in adapters(model).items()}
    assert ranks == {**dict.fromkeys(QUERIES, (2, 2)), **dict.fromkeys(VALUES, (4, 4))}


# Counts


@pytest.mark.parametrize(
    ("fields", "first", "others"),
    [  # of 24 x 24: trained, stored, effective
        ({}, Sizes(16, 16 + 192, 16 + 192), Sizes(16, 16, 16)),
        ({"train": "all", "init_weights": True}, Sizes(208, 208, 208), Sizes(16, 16, 16)),
        ({"frames_dtype": "bfloat16"}, Sizes(16, 208, 208), Sizes(16, 16, 16)),
        ({"frames_dtype": "int8"}, Sizes(16, 208 + 8, 208), Sizes(16, 16, 16)),  # a scale each direction of each side
        (
            {"rank_shape": (2, 2), "separation_rank": 3, "frames_dtype": "int8"},
            Sizes(16, 16 + 120 + 24, 16 + 120),
            Sizes(16, 16, 16),
        ),
        ({"share": "none"}, *2 * (Sizes(16, 208, 208),)),
        ({"share": "none", "train": "factors", "init_weights": True}, *2 * (Sizes(192, 192, 192),)),
    ],
)
def test_what_is_shared_counts_where_it_is_stored(fields, first, others, tmp_path):
    model = adapted(**fields)
    sizes = {name: layer.sizes("default") for name, layer in adapted_layers(model).items()}
    assert [sizes[name] for name in (QUERIES[0], VALUES[0])] == [first] * 2
    assert [sizes[name] for name in (QUERIES[1], VALUES[1])] == [others] * 2
    assert model.get_nb_trainable_parameters()[0] == sum(one.trained for one in sizes.values())
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(value.numel() for value in written.values()) == sum(one.stored for one in sizes.values())


# Training


def test_a_fresh_core_is_zero_and_random_where_a_fresh_adapter_is_to_differ():
    assert all(not adapter.core.any() for adapter in adapters(adapted()).values())
    cores = [adapter.core for adapter in adapters(adapted(init_weights=False)).values()]
    assert all(core.any() for core in cores)
    assert not torch.equal(cores[0], cores[1])


@pytest.mark.parametrize("init", ["random", "principal", "gradient"])
@pytest.mark.parametrize("part", ["core", "all"])
@pytest.mark.parametrize("share", ["none", "layers"])
def test_every_trained_tensor_moves_and_every_frozen_one_stays(init, part, share):
    model = adapted(init_weights=init, train=part, share=share)
    if init == "gradient":
        start_from_examples(model, [BATCH])
    assert torch.equal(logits(model), logits(tiny("bert")))
    before, trained = {key: value.clone() for key, value in tensors_of(model).items()}, trainable(model).keys()
    train(model)
    moved = {key for key, value in tensors_of(model).items() if not torch.equal(value, before[key])}
    assert moved == trained & before.keys()
    assert {key.rpartition(".")[2] for key in moved} == {"core", *(["factor_A1", "factor_B1"] * (part == "all"))}


def test_with_all_layers_as_examples_the_frames_are_those_of_all_their_gradients():
    """One start for the two queries, from both gradients: it holds more of them together than that of either alone."""
    shared, alone = (adapted(init_weights="gradient", share=share) for share in ("layers", "none"))
    for model in (shared, alone):
        start_from_examples(model, [BATCH])
    own = adapters(alone)
    a, b = adapters(shared)[QUERIES[1]].factors()
    for name in QUERIES:
        assert not torch.equal(a[0], own[name].factors()[0][0])
        assert not torch.equal(b[0], own[name].factors()[1][0])


@pytest.mark.parametrize("part", ["core", "all"])
def test_shared_factors_train_with_the_adapter_that_is_active(part):
    model = adapted(train=part, init_weights=True)
    model.add_adapter("second", LsrConfig(**{**USUAL, "train": part, "seed": 1}))

    def training(name):
        return {p.requires_grad for adapter in adapters(model, name).values() for p in adapter.frames.parameters()}

    assert (training("default"), training("second")) == ({True}, {False})
    model.set_adapter("second")
    assert (training("default"), training("second")) == ({False}, {True})
    for one in adapters(model, "second").values():
        one.requires_grad_(False)
    assert training("second") == {False}


def test_factors_are_initialized_again_with_all_cores_at_zero():
    model = stir(adapted(init_weights=False))
    list(initialize_factors(model, init_weights="principal"))
    expected = adapted()
    assert all(torch.equal(value, tensors_of(expected)[key]) for key, value in tensors_of(model).items())
    assert torch.equal(logits(model), logits(tiny("bert")))


# Beside others, copied, merged


def test_two_adapters_share_nothing_with_each_other():
    model = adapted()
    model.add_adapter("second", LsrConfig(**USUAL))
    one, two = (adapters(model, name)[QUERIES[1]].frames for name in ("default", "second"))
    assert one is not two
    model.delete_adapter("default")
    assert all(len(layer.lsr_adapters) == 1 for layer in adapted_layers(model).values())
    assert adapters(model, "second")[QUERIES[1]].frames is two


@each_shared
def test_a_copy_shares_as_well_and_nothing_with_the_original(subject):
    model = subject.stirred()
    before, twin = logits(model), copy.deepcopy(model)
    ours, theirs = adapters(model), adapters(twin)
    for name, adapter in theirs.items():
        assert adapter.frames is not ours[name].frames
        assert any(adapter.frames is other for other in theirs.values())
    train(twin)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(twin), before)


@each_shared
def test_merging_keeps_the_function_and_unmerging_brings_every_bit_back(subject):
    model = subject.stirred(task_type=None)
    before, weights = logits(model), {n: layer.weight.clone() for n, layer in adapted_layers(model).items()}
    model.merge_adapter()
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(layer.weight, weights[name]) for name, layer in adapted_layers(model).items())
    assert torch.equal(logits(model), before)


def test_a_model_in_another_dtype_computes_with_the_shared_factors_too():
    for fields in ({}, {"frames_dtype": "bfloat16"}, {"frames_dtype": "int8"}, {"train": "all"}):
        model = stir(adapted(**fields))
        expected = logits(model)
        assert_close(logits(model.double()), expected.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("share", ["none", "layers"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rounded_frames_come_back_exactly(storage, share, low_cpu_mem_usage, dtype, tmp_path):
    config = LsrConfig(**{**USUAL, "frames_dtype": storage, "share": share})
    model = get_peft_model(tiny("bert").to(dtype), config).eval()
    train(model)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny("bert").to(dtype), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    state = tensors_of(loaded)
    for key, value in tensors_of(model).items():
        assert (state[key].dtype, state[key].device) == (value.dtype, value.device)
        assert torch.equal(state[key], value)
    written = load_file(tmp_path / "adapter_model.safetensors")
    dtypes = {value.dtype for key, value in written.items() if ".factor_" in key}
    precise = torch.promote_types(dtype, torch.float32)
    assert dtypes == {precise if storage == "float32" else getattr(torch, storage)}


def test_a_sum_of_cores_between_dense_sides_is_exact_in_float64(tmp_path):
    model = stir(adapted().double())
    model.add_adapter("second", LsrConfig(**{**USUAL, "share": "none", "init_weights": "principal", "seed": 1}))
    model.set_adapter("second")
    stir(model, seed=1)
    model.add_weighted_adapter(["default", "second"], [0.7, -2.0], "sum")
    for layer in adapted_layers(model).values():
        expected = 0.7 * layer.get_delta_weight("default") - 2.0 * layer.get_delta_weight("second")
        assert_close(layer.get_delta_weight("sum"), expected)
    config = model.peft_config["sum"]
    assert (config.train, config.share, config.rank_shape, config.separation_rank) == ("factors", "none", (8,), 1)
    model.set_adapter("sum")
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(tiny("bert").double(), str(tmp_path / "sum"))
    assert_close(logits(loaded), logits(model))


def test_a_sum_whose_rank_is_above_a_side_is_refused_and_changes_nothing():
    model = adapted(rank_shape=(16,), separation_rank=None)
    model.add_adapter("second", LsrConfig(**{**USUAL, "rank_shape": (16,), "seed": 1}))
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=r"^layer 'bert\..*query': the rank must be in \[1, 24\], .* got 32"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert list(model.peft_config) == ["default", "second"]
    assert set(model.state_dict()) == before


def test_a_sum_of_cores_between_kronecker_factors_is_refused_and_changes_nothing():
    model = adapted(rank_shape=(2, 2), separation_rank=3)
    before = set(model.state_dict())
    message = r"^layer 'bert\..*query': with a core its update is no sum of Kronecker products; as LoRA \(python -m lsr"
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    assert list(model.peft_config) == ["default"]
    assert set(model.state_dict()) == before


# Files that do not fit


def saved(folder, **fields):
    model = stir(adapted(**fields))
    model.save_pretrained(str(folder))
    return model, load_file(folder / "adapter_model.safetensors")


def key_of(layer_name, part):
    return f"base_model.model.{layer_name}.lsr_adapters.{part}"


BROKEN = {  # what the file has: fields, keys left out, keys taken from others, what is said
    "no core": ({}, [(QUERIES[1], "core")], {}, f"{QUERIES[1]}.lsr_adapters.core is missing"),
    "no shared factor": ({}, [(QUERIES[0], "factor_A1")], {}, f"{QUERIES[0]}.lsr_adapters.factor_A1 is missing"),
    "no scale": (
        {"frames_dtype": "int8"},
        [(VALUES[0], "scale_B1")],
        {},
        f"{VALUES[0]}.lsr_adapters.scale_B1 is missing",
    ),
    "a shared factor twice": (
        {},
        [],
        {(QUERIES[1], "factor_A1"): (QUERIES[0], "factor_A1")},
        f"{QUERIES[1]}.lsr_adapters.factor_A1 is no part of this adapter on this base model",
    ),
    "a shared factor in another layer": (
        {},
        [(QUERIES[0], "factor_A1")],
        {(QUERIES[1], "factor_A1"): (QUERIES[0], "factor_A1")},
        f"{QUERIES[0]}.lsr_adapters.factor_A1 is missing",
    ),
    "a core too much": (
        {"share": "none", "train": "factors", "init_weights": True},
        [],
        {(QUERIES[0], "core"): (QUERIES[0], "factor_A1")},
        f"{QUERIES[0]}.lsr_adapters.core is no part of this adapter on this base model",
    ),
}


@pytest.mark.parametrize(("fields", "gone", "copied", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_file_that_holds_less_or_more_is_refused(fields, gone, copied, message, low_cpu_mem_usage, tmp_path):
    _, tensors = saved(tmp_path, **fields)
    more = {key_of(*key): tensors[key_of(*source)].clone() for key, source in copied.items()}
    removed = {key_of(*key) for key in gone}
    kept = {key: value for key, value in tensors.items() if key not in removed}
    save_file(kept | more, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"^the adapter's file: (base_model\.model\.)?{re.escape(message)}$"):
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)


# What cannot be


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target_modules": ["query", "value", "pooler.dense"]},
            "share='layers' needs two or more layers of a kind, and there is one bert.pooler.dense (24 x 24); use "
            "share='none', or leave it out",
        ),
        (
            {"target_modules": ["query"], "layers_to_transform": [1]},
            "there is one bert.encoder.layer.*.attention.self.query (24 x 24)",
        ),
        ({"rank_shape": (25,)}, f"layer {QUERIES[0]!r}: the rank must be in [1, 24], the smaller side of 24 x 24, got"),
        (
            {"rank_shape": (5, 5), "separation_rank": 1},
            f"layer {QUERIES[0]!r}: the rank must be in [1, 24], the smaller side of 24 x 24, got 25",
        ),
        (
            {"rank_shape": (25,), "train": "factors", "share": "none", "init_weights": True},
            f"layer {QUERIES[0]!r}: the rank must be in [1, 24], the smaller side of 24 x 24, got 25",
        ),
        (
            {"rank_pattern": {"value": (30,)}},
            f"layer {VALUES[0]!r}: the rank must be in [1, 24], the smaller side of 24 x 24, got 30",
        ),
    ],
)
def test_what_a_model_does_not_allow_is_refused_and_leaves_it_as_it_was(fields, message):
    base = tiny("bert")
    with pytest.raises(ValueError, match=re.escape(message)):
        get_peft_model(base, LsrConfig(**{**USUAL, **fields}))
    assert not adapted_layers(base)
    assert list(base.state_dict()) == list(tiny("bert").state_dict())
    model = adapted()
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        model.add_adapter("second", LsrConfig(**{**USUAL, **fields}))
    assert set(model.state_dict()) == before
    assert list(model.peft_config) == ["default"]
