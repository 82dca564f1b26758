"""Every start on a model: what it leaves unchanged, what its file holds, and how it comes back."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

import lsr
from lsr import LsrConfig, start_from_examples
from lsr.tuner.linear import adapted_layers
from tests.tiny_models import LABELS, logits, tiny, tokens

SHAPES = {"separation_rank": 3, "rank_shape": (2, 2), "alpha": 7, "seed": 0, "task_type": "SEQ_CLS"}
WEIGHT_STARTS = ("row_space", "principal", "minor", "cp")
PRODUCT_STARTS = ("principal", "minor", "cp")
MODELS = ("bert", "bert-padded", "gpt2")  # Conv1D is the other layout

each_model = pytest.mark.parametrize("name", MODELS)


def adapted(name="bert", **fields):
    return get_peft_model(tiny(name), LsrConfig(**{**SHAPES, **fields})).eval()


def base_weights(model):
    return {name: layer.base_parameter().detach().clone() for name, layer in adapted_layers(model).items()}


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = {**tokens(), "labels": torch.arange(4) % LABELS}
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def examples():
    return [{**tokens(), "labels": torch.arange(4) % LABELS}, {**tokens(3, 7), "labels": torch.arange(3) % LABELS}]


def reload(model, folder, base="bert", **options):
    model.save_pretrained(str(folder))
    return PeftModel.from_pretrained(tiny(base), str(folder), **options).eval()


# A fresh adapter


@each_model
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("init", WEIGHT_STARTS)
def test_a_fresh_adapter_with_b1_zero_changes_no_bit(name, init, align):
    model = adapted(name, init_weights=init, align=align and init != "cp")
    assert torch.equal(logits(model), logits(tiny(name)))


@each_model
@pytest.mark.parametrize("init", PRODUCT_STARTS)
def test_a_fresh_adapter_with_a_frozen_copy_changes_no_bit(name, init):
    assert torch.equal(logits(adapted(name, init_weights=init, residual="frozen")), logits(tiny(name)))


@each_model
@pytest.mark.parametrize("init", PRODUCT_STARTS)
def test_a_fresh_folded_adapter_changes_rounding_alone(name, init):
    assert_close(logits(adapted(name, init_weights=init, residual="fold")), logits(tiny(name)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", ["fold", "frozen"])
@pytest.mark.parametrize("init", PRODUCT_STARTS)
def test_a_subtracted_start_is_not_zero(init, residual):
    for layer in adapted_layers(adapted(init_weights=init, residual=residual)).values():
        a, b = layer._matrices("default", *layer.factors("default"))
        assert (b @ a).norm() > 0.05 * layer.base_matrix().norm() if init != "minor" else (b @ a).norm() > 0


@pytest.mark.parametrize("residual", ["zero", "fold", "frozen"])
@pytest.mark.parametrize("frames", ["trained", "frozen"])
def test_every_trained_factor_moves(frames, residual):
    model = adapted(init_weights="principal", residual=residual, frames=frames)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model)
    trained = dict(model.named_parameters())
    assert not [name for name, value in before.items() if torch.equal(value, trained[name])]
    assert any(".lsr_A2" in name for name in before) == (frames == "trained")


@pytest.mark.parametrize("residual", ["fold", "frozen"])
def test_what_moves_is_the_difference_to_the_start(residual):
    model = adapted(init_weights="principal", residual=residual)
    starts = {name: copy.deepcopy(layer.factors("default")) for name, layer in adapted_layers(model).items()}
    train(model)
    for name, layer in adapted_layers(model).items():
        before, after = (
            (lambda a, b: b @ a)(*layer._matrices("default", *sides))
            for sides in (starts[name], layer.factors("default"))
        )
        delta = layer.get_delta_weight("default")
        assert_close(delta, layer.scaling["default"] * (after - before), atol=1e-6, rtol=1e-4)
        assert torch.linalg.matrix_rank(delta) <= 2 * layer.form["default"].rank


# Forward = merged = LoRA


@each_model
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("residual", ["zero", "fold", "frozen"])
@pytest.mark.parametrize("init", ["principal", "minor"])
def test_forward_and_merged_and_lora_agree(name, init, residual, align):
    model = train(adapted(name, init_weights=init, residual=residual, align=align))
    expected = logits(model)
    plain = tiny(name)
    for layer_name, layer in adapted_layers(model).items():
        a, b = layer.as_lora("default")
        update = layer.scaling["default"] * (b @ a)
        plain.get_submodule(layer_name).weight.data += update.T if layer.is_transposed else update
    head = next(n for n, _ in plain.named_children() if n in ("classifier", "score"))
    trained_head = getattr(model.base_model.model, head).modules_to_save["default"]
    getattr(plain, head).load_state_dict(trained_head.state_dict())
    assert_close(logits(plain), expected, atol=1e-5, rtol=1e-4)
    model.merge_adapter()
    assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    assert_close(logits(model.merge_and_unload()), expected, atol=1e-5, rtol=1e-4)


# The base weight under a folded start


def folded(**fields):
    return adapted(init_weights="principal", residual="fold", **fields)


def test_a_folded_start_changes_base_weights_in_memory_and_disabling_brings_the_bits_back():
    model, before = folded(), base_weights(adapted())
    assert not any(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny("bert")))
        assert all(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    assert not any(torch.equal(before[name], weight) for name, weight in base_weights(model).items())


def test_unloading_a_folded_adapter_leaves_the_pretrained_model():
    assert torch.equal(logits(folded().unload()), logits(tiny("bert")))


def test_deleting_a_folded_adapter_leaves_the_pretrained_model():
    model = folded()
    model.add_adapter("second", LsrConfig(**SHAPES))
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(tiny("bert")))
    model.set_adapter("default")
    model.delete_adapter("default")
    assert all(torch.equal(w, base_weights(adapted())[n]) for n, w in base_weights(model).items())


def test_a_second_adapter_starts_from_the_pretrained_weight_and_not_from_the_folded_one():
    model = folded()
    model.add_adapter("second", LsrConfig(**SHAPES, init_weights="row_space"))
    alone = adapted(init_weights="row_space")
    for one, two in zip(adapted_layers(model).values(), adapted_layers(alone).values(), strict=True):
        for first, second in zip(one.factors("second")[0], two.factors("default")[0], strict=True):
            assert torch.equal(first, second)


# Files


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("frames", ["trained", "frozen"])
@pytest.mark.parametrize(
    ("init", "residual"),
    [("random", "zero"), ("row_space", "zero"), *[(i, r) for i in PRODUCT_STARTS for r in ("zero", "fold", "frozen")]],
)
def test_an_adapter_comes_back_bit_for_bit(init, residual, frames, low_cpu_mem_usage, tmp_path):
    model = train(adapted(init_weights=init, residual=residual, frames=frames))
    expected = logits(model.eval())
    assert torch.equal(logits(reload(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)), expected)


def test_what_can_be_made_again_is_not_in_the_file(tmp_path):
    adapted(init_weights="principal", residual="fold", frames="frozen").save_pretrained(str(tmp_path))
    names = [name.split(".lsr_")[1] for name in load_file(tmp_path / "adapter_model.safetensors") if ".lsr_" in name]
    assert set(names) == {"A1", "B1"}


@pytest.mark.parametrize("fields", [{"seed": None}, {"init_weights": "activation"}])
def test_frames_that_cannot_be_made_again_are_stored(fields, tmp_path):
    model = adapted(frames="frozen", **fields)
    if "init_weights" in fields:
        start_from_examples(model, examples())
    loaded = reload(train(model), tmp_path)
    assert any("frame_A2" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_the_order_of_inputs_is_stored_and_comes_back(tmp_path):
    model = train(adapted("bert-padded", init_weights="row_space", align=True))
    layer = next(iter(adapted_layers(model).values()))
    slots = layer.fixed("default").in_slots
    assert len(set(slots.tolist())) == layer.in_features
    assert 0 <= slots.min() <= slots.max() < layer.form["default"].in_width
    expected = logits(model.eval())
    assert torch.equal(logits(reload(model, tmp_path, "bert-padded")), expected)


@pytest.mark.parametrize("fields", [{"residual": "fold"}, {"residual": "frozen"}, {"frames": "frozen"}])
def test_another_base_model_is_refused_by_the_name_of_the_layer(fields, tmp_path):
    adapted(init_weights="principal", **fields).save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.bert.encoder.layer[1].attention.self.value.weight.data[0, 0] += 1e-6
    message = r"layer 'bert.encoder.layer.1.attention.self.value': this is not the base model .* has another hash"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(other, str(tmp_path))


def test_a_start_that_comes_out_differently_is_refused(tmp_path):
    adapted(frames="frozen").save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    first = next(iter(config["recipe"]["layers"].values()))
    assert first["weight"] is None  # a random start does not depend on it
    first["probe"][1] += 0.01
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the start 'random' comes out differently here"):
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path))


def test_a_base_weight_without_values_is_refused(tmp_path):
    adapted(init_weights="principal", residual="fold").save_pretrained(str(tmp_path))
    with torch.device("meta"):
        empty = type(tiny("bert"))(tiny("bert").config)
    with pytest.raises(ValueError, match=r"layer 'bert\.encoder.*': cannot start from a base weight without values"):
        PeftModel.from_pretrained(empty, str(tmp_path))


def test_sizes_tell_what_is_trained_from_what_is_stored_and_used():
    model = adapted("bert-padded", init_weights="row_space", frames="frozen", align=True)
    for layer in adapted_layers(model).values():
        form, sizes = layer.form["default"], layer.sizes("default")
        assert sizes.trained == form.first_parameters < sizes.effective == form.parameters
        assert sizes.stored == sizes.trained + layer.in_features


# Starts from examples


@pytest.mark.parametrize("init", ["gradient", "activation"])
@pytest.mark.parametrize("align", [False, True])
def test_a_start_from_examples_changes_no_bit_and_differs_from_a_random_one(init, align):
    model = adapted(init_weights=init, align=align)
    random = copy.deepcopy(model)
    start_from_examples(model, examples())
    assert torch.equal(logits(model), logits(tiny("bert")))
    for one, two in zip(adapted_layers(model).values(), adapted_layers(random).values(), strict=True):
        assert not torch.equal(one.factors("default")[0][0], two.factors("default")[0][0])


def test_the_gradient_start_points_along_the_gradient():
    model = adapted(init_weights="gradient", separation_rank=8, rank_shape=(2, 2))
    start_from_examples(model, examples())
    plain = tiny("bert")
    plain.load_state_dict(adapted(init_weights="gradient").unload().state_dict())
    total = 0
    for batch in examples():
        total = total + plain(**batch).loss * len(batch["labels"])
    total.backward()
    for name, layer in adapted_layers(model).items():
        gradient = plain.get_submodule(name).weight.grad
        a, _ = layer.collapse("default")
        basis = torch.linalg.qr(a.detach().T).Q
        assert (gradient @ basis).norm() > 0.5 * gradient.norm()


def test_examples_for_a_start_that_reads_none_are_refused():
    with pytest.raises(ValueError, match=r"init_weights must be one of \['gradient', 'activation'\]"):
        start_from_examples(adapted(init_weights="row_space"), examples())


def test_a_start_from_examples_without_examples_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        start_from_examples(adapted(init_weights="gradient"), [])


# Budget


@pytest.mark.parametrize("frames", ["trained", "frozen"])
def test_a_budget_is_never_exceeded_and_its_ranks_are_in_the_file(frames, tmp_path):
    model = adapted(init_weights="row_space", separation_rank="auto", budget=900, frames=frames)
    layers = adapted_layers(model)
    assert 450 < sum(layer.sizes("default").trained for layer in layers.values()) <= 900
    loaded = reload(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {name: layer.form["default"].separation_rank for name, layer in layers.items()}
    assert written["separation_rank_pattern"] == expected
    assert {n: layer.form["default"].separation_rank for n, layer in adapted_layers(loaded).items()} == expected


def test_a_budget_below_one_term_a_layer_is_refused_with_the_least():
    least = sum(layer.form["default"].parameters for layer in adapted_layers(adapted(separation_rank=1)).values())
    with pytest.raises(ValueError, match=rf"a budget of {least - 1} .* {least}"):
        adapted(separation_rank="auto", budget=least - 1)
    assert adapted(separation_rank="auto", budget=least)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separation_rank": "auto"}, "separation_rank='auto' and budget need each other"),
        ({"budget": 100}, "separation_rank='auto' and budget need each other"),
        ({"residual": "fold"}, r"residual='fold' needs a start that fits B too, one of \['principal', 'minor', 'cp'\]"),
        ({"residual": "keep"}, r"residual must be one of \['zero', 'fold', 'frozen'\], got 'keep'"),
        ({"frames": "fixed"}, r"frames must be one of \['trained', 'frozen'\], got 'fixed'"),
        ({"align": True}, r"align needs init_weights to be one of \['row_space', .*\], got True"),
        ({"aspect": 0}, "aspect must be a number > 0, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LsrConfig(**{"separation_rank": 3, **fields})


def test_the_public_names_are_exported():
    names = {"LsrConfig", "LsrModel", "start_from_examples"}
    after = {"compress_lora", "export_lora", "export_merged", "inspect_adapter", "prune_adapter"}
    assert set(lsr.__all__) == names | after
    assert all(callable(getattr(lsr, name)) for name in lsr.__all__)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_folded_start_in_a_searched_order_is_subtracted_in_that_order_when_it_is_loaded(tmp_path, low_cpu_mem_usage):
    base = tiny("roberta")
    expected = logits(base)
    config = LsrConfig(task_type="SEQ_CLS", init_weights="principal", residual="fold", align=True, separation_rank=2)
    get_peft_model(base, config).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("roberta"), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    slots = [layer.fixed("default").in_slots for layer in adapted_layers(loaded).values()]
    assert any((found != torch.arange(len(found))).any() for found in slots)
    assert_close(logits(loaded.eval()), expected)
