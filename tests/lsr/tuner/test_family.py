"""Frames from elsewhere: held once for all adapters, told by their hash, and never mistaken for others."""

import copy
import gc
import json
import os
import re
import shutil
import weakref

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lsr import LsrConfig, export_lora, pool_frames, start_from_examples
from lsr.algebra.shapes import Form
from lsr.convert.inspect import inspect_adapter
from lsr.loading.adapters import load_adapter, load_layers
from lsr.loading.files import InputError
from lsr.tuner.family import check_room, frames_hash
from lsr.tuner.linear import adapted_layers
from lsr.tuner.resolved import Resolved
from lsr.tuner.start import initialize_factors
from tests.capabilities.behavior import EVERY
from tests.capabilities.checks import stir, train, trainable
from tests.capabilities.models import logits, tiny, tokens
from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import Subject
from tests.lsr.tuner.test_citizenship import REFUSED

pytestmark = pytest.mark.usefixtures("remembered_fits")

USUAL = {"task_type": "SEQ_CLS", "rank_shape": (4,), "alpha": 7, "seed": 0, "train": "core"}
FAMILIES = {  # fields of the adapter whose frames they are
    "one factor": {"init_weights": "principal"},
    "two factors": {"rank_shape": (2, 2), "separation_rank": 3},
    "shared": {"share": "layers", "init_weights": "principal"},
    "shared, two factors": {"share": "layers", "rank_shape": (2, 2), "separation_rank": 3},
    "rounded to bfloat16": {"frames_dtype": "bfloat16"},
    "rounded to int8": {"frames_dtype": "int8", "share": "layers"},
    "rounded to signs": {"frames_dtype": "sign"},
    "trained frames": {"train": "all", "share": "layers"},
}
QUERY = "bert.encoder.layer.0.attention.self.query"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def first(folder, **fields):
    """A trained adapter with frames of its own, saved beside its base."""
    base = tiny("bert")
    base.save_pretrained(str(folder.parent / "base"))
    base.name_or_path = str(folder.parent / "base")
    model = stir(get_peft_model(base, LsrConfig(**{**USUAL, **fields})).eval())
    model.save_pretrained(str(folder))
    return model


def member(folder, family, **fields):
    """What an adapter says that takes its frames from a folder: of the forms that these have."""
    forms = {name: family[name] for name in ("share", "rank_shape", "separation_rank") if name in family}
    return LsrConfig(**{**USUAL, **forms, "frames": str(folder), **fields})


def with_member(folder, family, base=None, **fields):
    base = tiny("bert") if base is None else base
    base.name_or_path = str(folder.parent / "base")
    return get_peft_model(base, member(folder, family, **fields)).eval()


def adapters(model, name="default"):
    return {key: layer.adapter(name) for key, layer in adapted_layers(model).items() if name in layer.lsr_adapters}


def kept(model):
    """Frames from elsewhere that layers of a model keep."""
    return [frames for layer in adapted_layers(model).values() for frames in layer.lsr_frames.values()]


def same_factors(one, two):
    return all(
        torch.equal(x, y) for pair in zip(one.factors(), two.factors(), strict=True) for x, y in zip(*pair, strict=True)
    )


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What it holds and stores


@each_family
def test_it_starts_as_the_base_model_with_the_frames_of_the_other(family, tmp_path):
    owner = adapters(first(tmp_path / "one", **family))
    model = with_member(tmp_path / "one", family)
    assert torch.equal(logits(model), logits(tiny("bert")))
    for name, adapter in adapters(model).items():
        assert same_factors(adapter, owner[name])
        assert (adapter.frames is adapter) is False
    stir(model)
    a, b = (value.detach() for value in adapters(model)[QUERY].collapse())
    own_a, own_b = owner[QUERY].matrices(*owner[QUERY].factors())
    assert_close(a, adapters(model)[QUERY].core @ own_a)
    assert torch.equal(b, own_b)


@each_family
def test_cores_and_heads_alone_train_and_are_stored(family, tmp_path):
    first(tmp_path / "one", **family)
    model = with_member(tmp_path / "one", family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frames = [{name: value.clone() for name, value in one.named_buffers()} for one in kept(model)]
    assert not any("lsr_frames" in name for name in before)
    assert {name.rpartition(".")[2] for name in trainable(model) if ".lsr_" in name} == {"core"}
    train(model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trainable(model))
    for one, values in zip(kept(model), frames, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in one.named_buffers())
    model.save_pretrained(str(tmp_path / "two"))
    written = load_file(tmp_path / "two" / WEIGHTS)
    assert {name.rpartition(".")[2] for name in written if ".lsr_" in name} == {"core"}
    assert sum(".classifier." in name for name in written) == 2
    stored = sum(layer.sizes("default").stored for layer in adapted_layers(model).values())
    assert stored == sum(value.numel() for name, value in written.items() if ".lsr_" in name) == 4 * 16


@each_family
def test_the_frames_count_as_effective_where_they_are_kept(family, tmp_path):
    owner = first(tmp_path / "one", **family)
    model = with_member(tmp_path / "one", family)
    for name, layer in adapted_layers(model).items():
        sizes = layer.sizes("default")
        assert (sizes.trained, sizes.stored) == (16, 16)
        assert sizes.effective == adapted_layers(owner)[name].sizes("default").effective
    model.add_adapter("second", member(tmp_path / "one", family))
    assert all(layer.sizes("second") == layer.sizes("default") for layer in adapted_layers(model).values())


@each_family
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_it_comes_back_bit_for_bit(family, low_cpu_mem_usage, tmp_path):
    first(tmp_path / "one", **family)
    model = with_member(tmp_path / "one", family)
    train(model)
    model.save_pretrained(str(tmp_path / "two"))
    loaded = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two"), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(value.is_meta for one in kept(loaded) for value in one.buffers())
    loaded.save_pretrained(str(tmp_path / "three"))
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


@each_family
def test_its_file_says_whose_frames_it_was_trained_on(family, tmp_path):
    first(tmp_path / "one", **family)
    with_member(tmp_path / "one", family).save_pretrained(str(tmp_path / "two"))
    tensors = {}
    for key, value in load_file(tmp_path / "one" / WEIGHTS).items():
        layer, infix, name = key.removeprefix("base_model.model.").partition(".lsr_adapters.")
        if infix and name != "core":
            tensors.setdefault(layer, {})[name] = value
    said = json.loads((tmp_path / "two" / CONFIG).read_text())
    assert said["resolved"]["frames_hash"] == frames_hash(tensors)
    assert said["frames"] == str(tmp_path / "one")
    assert json.loads((tmp_path / "one" / CONFIG).read_text())["resolved"]["frames_hash"] is None


def test_the_hash_tells_names_dtypes_shapes_and_bytes_apart():
    usual = {"a": {"factor_A1": torch.arange(6.0).reshape(1, 2, 3)}}
    others = [
        {"b": usual["a"]},
        {"a": {"factor_B1": usual["a"]["factor_A1"]}},
        {"a": {"factor_A1": usual["a"]["factor_A1"].double()}},
        {"a": {"factor_A1": usual["a"]["factor_A1"].reshape(1, 3, 2)}},
        {"a": {"factor_A1": usual["a"]["factor_A1"] + 1e-6}},
        {},
    ]
    assert len({frames_hash(tensors) for tensors in (usual, *others)}) == 1 + len(others)
    assert frames_hash({"a": {"factor_A1": usual["a"]["factor_A1"].mT.contiguous().mT}}) == frames_hash(usual)


# One copy


@each_family
def test_adapters_of_one_model_hold_one_copy(family, tmp_path):
    first(tmp_path / "one", **family)
    model = with_member(tmp_path / "one", family)
    count = len(kept(model))
    assert count == (2 if family.get("share") == "layers" else 4)
    model.add_adapter("second", member(tmp_path / "one", family))
    model.save_pretrained(str(tmp_path / "two"))
    model.load_adapter(str(tmp_path / "two" / "second"), "third")
    assert len(kept(model)) == count
    for name, adapter in adapters(model).items():
        assert adapter.frames is adapters(model, "second")[name].frames is adapters(model, "third")[name].frames


def test_a_renamed_folder_of_the_same_frames_is_held_once(tmp_path):
    first(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    model = with_member(tmp_path / "one", {})
    model.add_adapter("second", member(tmp_path / "copy", {}))
    assert len(kept(model)) == 4
    assert adapters(model)[QUERY].frames is adapters(model, "second")[QUERY].frames


@each_family
def test_what_nobody_holds_any_more_is_freed(family, tmp_path):
    first(tmp_path / "one", **family)
    model = with_member(tmp_path / "one", family)
    model.add_adapter("second", member(tmp_path / "one", family))
    tensors = [weakref.ref(value) for one in kept(model) for value in one.buffers()]
    model.set_adapter("second")
    expected = logits(model)
    model.delete_adapter("default")
    assert len(kept(model)) == (2 if family.get("share") == "layers" else 4)
    assert torch.equal(logits(model), expected)
    model.delete_adapter("second")
    assert kept(model) == []
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)


def test_frames_of_other_layers_are_found_by_an_adapter_on_more_of_them(tmp_path):
    """The first member sits on queries alone; the second also on values, and holds the same frames of queries."""
    first(tmp_path / "one", share="layers")
    model = with_member(tmp_path / "one", {"share": "layers"}, target_modules=["query"])
    assert len(kept(model)) == 1
    model.add_adapter("second", member(tmp_path / "one", {"share": "layers"}))
    assert len(kept(model)) == 2
    assert adapters(model)[QUERY].frames is adapters(model, "second")[QUERY].frames


def test_a_family_that_shares_serves_a_single_layer_too(tmp_path):
    owner = first(tmp_path / "one", share="layers")
    model = with_member(tmp_path / "one", {"share": "layers"}, target_modules=["query"], layers_to_transform=[1])
    (adapter,) = adapters(model).values()
    assert same_factors(adapter, adapters(owner)[QUERY])


# As any adapter


@each_family
def test_a_copy_computes_the_same_and_holds_frames_of_its_own(family, tmp_path):
    first(tmp_path / "one", **family)
    model = stir(with_member(tmp_path / "one", family))
    before, twin = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    assert len(kept(twin)) == len(kept(model))
    assert all(any(adapter.frames is one for one in kept(twin)) for adapter in adapters(twin).values())
    assert not any(one is other for one in kept(twin) for other in kept(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "sign"])
@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.float, torch.nn.Module.double])
def test_rounded_frames_of_a_model_in_another_dtype_are_still_frames(cast, dtype, tmp_path):
    owner = first(tmp_path / "one", frames_dtype=dtype)
    expected = {name: value.clone() for name, value in owner.state_dict().items() if ".factor_" in name}
    cast(owner).save_pretrained(str(tmp_path / "two"))
    family = {"frames_dtype": dtype}
    assert all(torch.equal(owner.state_dict()[name], value) for name, value in expected.items())
    assert len(kept(with_member(tmp_path / "two", family))) == len(adapters(owner))


@each_family
def test_frames_go_where_the_model_goes(family, tmp_path):
    first(tmp_path / "one", **family)
    model = stir(with_member(tmp_path / "one", family))
    expected = logits(model)
    assert_close(logits(model.double()), expected.double(), atol=1e-4, rtol=1e-4)
    assert {value.device.type for one in kept(model.to("meta")) for value in one.buffers()} == {"meta"}


@each_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_base_in_another_dtype_has_them_too(family, dtype, autocast_adapter_dtype, tmp_path):
    first(tmp_path / "one", **family)
    base = tiny("bert").to(dtype)
    model = get_peft_model(base, member(tmp_path / "one", family), autocast_adapter_dtype=autocast_adapter_dtype).eval()
    assert torch.equal(logits(model), logits(tiny("bert").to(dtype)))
    losses, moved = train(model, steps=3)
    assert all(moved.values())
    assert losses[-1] < losses[0]


@each_family
def test_merging_mixed_rows_and_disabling_work(family, tmp_path):
    first(tmp_path / "one", **family)
    model = stir(with_member(tmp_path / "one", family, task_type=None))
    model.add_adapter("second", LsrConfig(**{**USUAL, "task_type": None, "train": "factors", "init_weights": False}))
    model.eval()
    before = logits(model)
    with model.disable_adapter():
        base = logits(model)
    assert torch.equal(base, logits(tiny("bert")))
    with torch.no_grad():
        mixed = model(**tokens(), adapter_names=["default", "__base__", "default", "__base__"]).logits
    assert_close(mixed, torch.stack([before[0], base[1], before[2], base[3]]))
    model.merge_adapter()
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)


def test_a_compiled_model_is_one_graph(tmp_path):
    torch.compiler.reset()
    first(tmp_path / "one", share="layers")
    model = stir(with_member(tmp_path / "one", {"share": "layers"}))
    assert_close(logits(torch.compile(model, backend="eager", fullgraph=True)), logits(model))
    torch.compiler.reset()


def test_initializing_such_an_adapter_leaves_its_frames_and_what_its_file_says(tmp_path):
    first(tmp_path / "one")
    model = with_member(tmp_path / "one", {})
    before = model.state_dict().keys()
    assert list(initialize_factors(model)) == []
    with pytest.raises(
        ValueError, match=rf"^frames: the frames of '{tmp_path}/one' are fixed and cannot be initialized"
    ):
        start_from_examples(model, [])
    assert model.state_dict().keys() == before
    model.save_pretrained(str(tmp_path / "two"))
    assert json.loads((tmp_path / "two" / CONFIG).read_text())["resolved"]["frames_hash"] is not None


# What the probe needs that the family does not have: other ranks, other layers.
OUT_OF_REACH = ("`rank_pattern`", '`target_modules="all-linear"`')


@pytest.mark.parametrize(
    "behavior",
    [
        name
        for name, entry in BEHAVIORS.items()
        if (entry.on == EVERY or "bert" in entry.on) and name not in (*REFUSED, *OUT_OF_REACH)
    ],
)
def test_a_behavior_of_adapters_is_there(behavior, tmp_path):
    first(tmp_path / "one", share="layers")
    fields = {"separation_rank": None, "share": "layers", "frames": str(tmp_path / "one")}
    subject = Subject("bert", {**USUAL, **fields})
    (tmp_path / "probe").mkdir()
    BEHAVIORS[behavior].probe(subject, tmp_path / "probe")


# Without the model, as LoRA, as a report


@each_family
def test_it_is_read_exported_and_reported_with_its_base_and_without(family, tmp_path):
    first(tmp_path / "one", **family)
    model = stir(with_member(tmp_path / "one", family))
    model.save_pretrained(str(tmp_path / "two"))
    loaded, alone = load_adapter(tmp_path / "two"), load_layers(tmp_path / "two")
    assert torch.equal(logits(loaded), logits(model))
    for name, layer in adapted_layers(model).items():
        assert torch.equal(alone[name].get_delta_weight("default"), layer.get_delta_weight("default"))
    export_lora(loaded, tmp_path / "lora")
    assert_close(logits(load_adapter(tmp_path / "lora", method="LORA")), logits(model), atol=1e-5, rtol=1e-5)
    report = inspect_adapter(tmp_path / "two")
    assert report.base_problem is None
    shutil.rmtree(tmp_path / "base")
    again = inspect_adapter(tmp_path / "two")
    assert again.base_problem is not None
    for name, layer in adapted_layers(model).items():
        sizes = layer.sizes("default")
        for shown in (report.layers[name], again.layers[name]):
            assert (shown.trained, shown.stored, shown.effective) == (sizes.trained, sizes.stored, sizes.effective)
            assert shown.norm == pytest.approx(float(layer.get_delta_weight("default").norm()), rel=1e-5)


# Where they are


@pytest.mark.parametrize("frames", ["frames", "../frames", "inside/frames"])
def test_a_relative_folder_is_one_beside_or_inside_the_adapters(frames, tmp_path, monkeypatch):
    first(tmp_path / "elsewhere")
    model = stir(with_member(tmp_path / "elsewhere", {}))
    model.save_pretrained(str(tmp_path / "two"))
    place = {"frames": "frames", "../frames": "frames", "inside/frames": "two/inside/frames"}[frames]
    (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / place)
    edit(tmp_path / "two", frames=frames)
    monkeypatch.chdir("/")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two"))), logits(model))
    assert torch.equal(logits(load_adapter(tmp_path / "two")), logits(model))
    assert load_layers(tmp_path / "two").keys() == adapted_layers(model).keys()


def test_other_frames_of_the_name_in_the_working_directory_are_not_those_of_the_adapter(tmp_path, monkeypatch):
    first(tmp_path / "frames")
    model = stir(with_member(tmp_path / "frames", {}))
    model.save_pretrained(str(tmp_path / "two"))
    edit(tmp_path / "two", frames="frames")
    first(tmp_path / "here/frames", seed=1)
    monkeypatch.chdir(tmp_path / "here")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two"))), logits(model))


def test_a_relative_folder_is_one_of_the_working_directory_for_a_new_adapter(tmp_path, monkeypatch):
    owner = first(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    model = get_peft_model(tiny("bert"), LsrConfig(**USUAL, frames="one"))
    assert same_factors(adapters(model)[QUERY], adapters(owner)[QUERY])


# What is no family, or another


def replace_tensor(folder, part, change):
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in sorted(tensors) if key.endswith(part))
    value = change(tensors.pop(key))
    save_file(tensors if value is None else {**tensors, key: value}, folder / WEIGHTS)


def stale(folder):
    replace_tensor(folder, "factor_A1", lambda value: value + 1e-3)


def nan(folder):
    replace_tensor(folder, "factor_A1", lambda value: value * float("nan"))


def without_a_factor(folder):
    replace_tensor(folder, "1.attention.self.value.lsr_adapters.factor_B1", lambda _: None)


def of_another_shape(folder):
    replace_tensor(folder, "1.attention.self.value.lsr_adapters.factor_B1", lambda value: value[:, :-1].clone())


def of_another_dtype(folder):
    replace_tensor(folder, "1.attention.self.value.lsr_adapters.factor_B1", lambda value: value.to(torch.int8))


def without_factors(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({key: value for key, value in tensors.items() if ".lsr_" not in key}, folder / WEIGHTS)


def cut_off(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def without_configuration(folder):
    (folder / CONFIG).unlink()


def without_shapes(folder):
    edit(folder, resolved=None)


def of_another_method(folder):
    edit(folder, peft_type="LORA")


def gone(folder):
    shutil.rmtree(folder)


def as_core(folder):
    edit(folder, frames="./other", train="core")


def of_no_dtype(folder):
    replace_tensor(folder, "1.attention.self.value.lsr_adapters.factor_B1", lambda value: value != 0)


def twice(folder):
    tensors = load_file(folder / WEIGHTS)
    again = {key.replace("layer.0.", "layer.1."): value + 1 for key, value in tensors.items() if "factor_" in key}
    save_file({**tensors, **again}, folder / WEIGHTS)


def of_a_short_sketch(folder):
    fields = json.loads((folder / CONFIG).read_text())
    edit(folder, resolved=fields["resolved"] | {"base_sketch": {"a": [1.0]}})


def huge(folder):
    edit(folder, rank_shape=[10_000_000])


def endless(folder):
    edit(folder, rank_pattern={"([a-z0-9.]+)+X": [4]})


def as_pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def large(folder):
    edit(folder, task_type="x" * 8_000_000)


DAMAGE = {  # what became of the folder: what a new adapter says
    nan: r"no LSR adapter can be read from .*: base_model\..*factor_A1 holds values that are not finite",
    of_no_dtype: r"factor_B1 holds values of bool; needed: float64",
    huge: r"layer 'bert.*query': its configuration says 480,000,000 entries, but the file holds 768",
    endless: r"rank_pattern: '.*' takes over 0\.5 s on the names of the layers",
    as_pipe: r"adapter_model\.safetensors: not a file",
    large: r"adapter_config\.json: a file of over 8,000,000 bytes",
    without_a_factor: r"factor_B1 is missing",
    of_another_shape: r"factor_B1 is \(1, 23, 4\) in torch\.float32, needed: \(1, 24, 4\) in torch\.float32",
    of_another_dtype: r"factor_B1 is \(1, 24, 4\) in torch\.int8, needed: \(1, 24, 4\) in torch\.float32",
    without_factors: "holds no factors",
    cut_off: "no LSR adapter can be read from",
    without_weights: "no LSR adapter can be read from",
    without_configuration: r"no LSR adapter can be read from .*: adapter_config\.json is missing",
    without_shapes: "no LSR adapter can be read from .*: it is not a saved LSR adapter",
    of_another_method: "no LSR adapter can be read from",
    gone: "no LSR adapter can be read from .*: no such folder",
    of_a_short_sketch: "resolved: not what a saved adapter says of its layers",
    as_core: r"holds only a core; its frames are in '\./other': name that",
}
OTHERS = {  # another family or another member: fields of both, what is said
    "rank": ({}, {"rank_shape": (2,)}, r"layer 'bert.*query': the adapter needs frames of rank_shape \[2\] .* \[4\]"),
    "factors": (
        {},
        {"rank_shape": (2, 2), "separation_rank": 3},
        r"needs frames of rank_shape \[2, 2\], separation_rank 3 for 24 x 24 as \[6, 4\] x \[6, 4\]",
    ),
    "terms": (
        {"rank_shape": (2, 2), "separation_rank": 3},
        {"rank_shape": (2, 2), "separation_rank": 2},
        "separation_rank 2 for .* holds for it rank_shape .* separation_rank 3",
    ),
    "shared rank": ({"share": "layers"}, {"share": "layers", "rank_shape": (2,)}, "holds none for this layer and form"),
    "share": ({"share": "layers"}, {}, "need share='layers', got 'none'"),
    "not shared": ({}, {"share": "layers"}, "need share='none', got 'layers'"),
    "other layers": (
        {"target_modules": ["query"]},
        {"target_modules": ["query", "value"]},
        "layer 'bert.encoder.layer.0.attention.self.value': .* holds none for this layer",
    ),
}


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr("lsr.tuner.expressions.SECONDS", 0.5)


def refused(act, message):
    with pytest.raises(ValueError, match=message) as found:
        act()
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(("damage", "message"), DAMAGE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_folder_is_refused_in_one_line_and_the_model_stays_as_it_was(damage, message, tmp_path):
    first(tmp_path / "one")
    damage(tmp_path / "one")
    base = tiny("bert")
    said = refused(lambda: get_peft_model(base, member(tmp_path / "one", {})), message)
    assert str(tmp_path / "one") in said
    assert list(base.state_dict()) == list(tiny("bert").state_dict())
    model = get_peft_model(tiny("bert"), LsrConfig(**USUAL))
    before = set(model.state_dict())
    refused(lambda: model.add_adapter("second", member(tmp_path / "one", {})), message)
    assert set(model.state_dict()) == before
    assert list(model.peft_config) == ["default"]
    assert kept(model) == []


@pytest.mark.parametrize(("family", "fields", "message"), OTHERS.values(), ids=OTHERS)
def test_frames_of_another_form_are_refused_and_the_model_stays_as_it_was(family, fields, message, tmp_path):
    first(tmp_path / "one", **family)
    base = tiny("bert")
    refused(lambda: get_peft_model(base, LsrConfig(**{**USUAL, "frames": str(tmp_path / "one"), **fields})), message)
    assert list(base.state_dict()) == list(tiny("bert").state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    {**DAMAGE, stale: r"have the hash [0-9a-f]{12}, but the adapter was trained on others, [0-9a-f]{12}"}.items(),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_saved_adapter_without_its_frames_is_refused_by_every_reader(damage, message, tmp_path):
    first(tmp_path / "one")
    with_member(tmp_path / "one", {}).save_pretrained(str(tmp_path / "two"))
    damage(tmp_path / "one")
    hashed = rf"{message}|have the hash [0-9a-f]{{12}}, but the adapter was trained on others"
    refused(lambda: PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "two")), hashed)
    for read in (load_adapter, load_layers, inspect_adapter):
        with pytest.raises(InputError) as found:
            read(tmp_path / "two")
        assert re.search(hashed, found.value.args[0])  # whole: long paths are cut in the line that is printed
        assert "\n" not in str(found.value)


def test_few_numbers_are_not_taken_that_stand_for_large_matrices():
    form = Form((200, 200), (200, 200), (200, 200), 1, 40_000, 40_000)
    config = LsrConfig(rank_shape=(200, 200), separation_rank=1)
    config.resolved = Resolved.of({"layer": form}, {})
    tensors = {"layer": {"factor_A1": torch.empty(form.parameters)}}
    with pytest.raises(ValueError, match="layer 'layer': its A and B have 3,200,000,000 entries; at most 1,07"):
        check_room(config, tensors)


def test_frames_that_a_kind_of_layers_shares_are_refused_if_two_layers_hold_them(tmp_path):
    first(tmp_path / "one", share="layers")
    twice(tmp_path / "one")
    held = r"holds those of .* twice, the second time in layer 'bert\.encoder\.layer\.1\.attention\.self\.query'"
    refused(lambda: get_peft_model(tiny("bert"), member(tmp_path / "one", {"share": "layers"})), held)


OTHER_BASE = "are of another base model: the weights of layer 'bert.encoder.layer.0.attention.self.query' differ"


def other_base():
    base = tiny("bert")
    torch.manual_seed(1)
    for parameter in base.parameters():
        parameter.data = torch.randn_like(parameter)
    return base


def test_frames_of_another_base_model_are_refused_and_the_model_stays_as_it_was(tmp_path):
    first(tmp_path / "one")
    base = other_base()
    said = refused(lambda: get_peft_model(base, member(tmp_path / "one", {})), re.escape(OTHER_BASE))
    assert said.startswith(f"frames: those in {str(tmp_path / 'one')!r}")
    assert list(base.state_dict()) == list(tiny("bert").state_dict())
    with_member(tmp_path / "one", {}).save_pretrained(str(tmp_path / "two"))
    refused(lambda: PeftModel.from_pretrained(base, str(tmp_path / "two")), re.escape(OTHER_BASE))
    model = get_peft_model(base, LsrConfig(**USUAL))
    refused(lambda: model.add_adapter("second", member(tmp_path / "one", {})), re.escape(OTHER_BASE))


def test_frames_pooled_from_adapters_know_their_base_model(tmp_path):
    first(tmp_path / "one")
    pool_frames([tmp_path / "one"], tmp_path / "pooled")
    get_peft_model(tiny("bert"), member(tmp_path / "pooled", {}))
    refused(lambda: get_peft_model(other_base(), member(tmp_path / "pooled", {})), re.escape(OTHER_BASE))


def test_frames_without_a_sketch_of_their_base_model_are_taken(tmp_path):
    first(tmp_path / "one")
    fields = json.loads((tmp_path / "one" / CONFIG).read_text())
    del fields["resolved"]["base_sketch"]  # as files of earlier versions
    edit(tmp_path / "one", resolved=fields["resolved"])
    get_peft_model(other_base(), member(tmp_path / "one", {}))


def test_a_name_that_is_no_folder_is_refused_without_a_hub():
    said = "frames: no LSR adapter can be read from 'nobody/nothing': no such folder, and from the hub: "
    with pytest.raises(ValueError, match=re.escape(said)):
        get_peft_model(tiny("bert"), LsrConfig(**USUAL, frames="nobody/nothing"))
