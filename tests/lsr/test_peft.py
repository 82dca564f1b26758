"""What PEFT promises of a method, as a matrix: models x configurations x behaviours."""

import copy
import hashlib
import re
from dataclasses import dataclass, field

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, LsrModel, spectrum
from lsr import layer as layer_module
from lsr.layer import LsrLayer
from lsr.model import adapted_layers
from tests.tiny_models import LABELS, logits, tiny, tokens

LABELLED = {"labels": torch.arange(4) % LABELS}
SECOND = {"rank_shape": (2, 1, 2), "separation_rank": 2, "alpha": 5, "seed": 1}


@dataclass(frozen=True)
class Case:
    """One configuration on one model, and what should be adapted by it."""

    model: str
    layers: int  # how many
    fields: dict = field(default_factory=dict)
    heads: tuple[str, ...] = ("classifier",)

    def config(self, **fields):
        usual = {"task_type": "SEQ_CLS", "rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0}
        chosen = copy.deepcopy({**usual, **self.fields, **fields})
        if chosen.get("init_weights") is False:  # all random: nothing to align or to subtract
            chosen = {name: value for name, value in chosen.items() if name not in ("align", "residual")}
        return LsrConfig(**chosen)

    def adapted(self, **fields):
        return get_peft_model(tiny(self.model), self.config(**fields)).eval()


CASES = {
    "two factors": Case("bert", 4),
    "three factors": Case("bert", 4, {"rank_shape": (2, 2, 2)}),
    "rank stabilised": Case("roberta", 4, {"rank_stabilized": True}),
    "alpha is the rank": Case("roberta", 4, {"alpha": 4}),
    "dropout": Case("distilbert", 4, {"dropout": 0.3}, ("pre_classifier", "classifier")),
    "row space": Case("roberta", 4, {"init_weights": "row_space"}),
    "row space, three factors": Case("bert", 4, {"init_weights": "row_space", "rank_shape": (2, 2, 2)}),
    "principal": Case("bert", 4, {"init_weights": "principal"}),
    "aligned": Case("bert-padded", 4, {"init_weights": "row_space", "align": True}),
    "both sides aligned": Case("bert-padded", 4, {"init_weights": "minor", "align": True, "residual": "frozen"}),
    "frozen copy": Case("roberta", 4, {"init_weights": "principal", "residual": "frozen"}),
    "frozen frames": Case("bert", 4, {"frames": "frozen", "aspect": 2}),
    "frozen frames of the weight": Case("roberta", 4, {"init_weights": "row_space", "frames": "frozen"}),
    "frozen frames that are stored": Case("bert", 4, {"frames": "frozen", "seed": None}),
    "budget": Case("bert", 4, {"separation_rank": "auto", "budget": 900}),
    "padded width": Case(
        "bert-padded", 6, {"target_modules": ["query", "intermediate.dense", "attention.output.dense"]}
    ),
    "own shapes": Case("bert", 4, {"in_shape": (5, 5), "out_shape": (2, 13)}),
    "patterns": Case(
        "bert",
        6,
        {
            "target_modules": ["query", "key", "value"],
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1, 1)},
            "separation_rank_pattern": {"key": 1},
            "alpha_pattern": {"0.attention.self.query": 3},
        },
    ),
    "all linear": Case("bert", 13, {"target_modules": "all-linear"}),
    "regular expression": Case("roberta", 2, {"target_modules": r".*layer\.1\..*\.(query|value)"}),
    "excluded": Case("bert", 3, {"exclude_modules": ["0.attention.self.value"]}),
    "one layer": Case("bert", 2, {"target_modules": ["query", "value"], "layers_to_transform": [1]}),
    "pattern of layers": Case(
        "gpt2", 1, {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}, ("score",)
    ),
    "biases of the adapted": Case("bert", 4, {"bias": "lsr_only"}),
    "all biases": Case("bert", 4, {"bias": "all"}),
    "more saved whole": Case("bert", 4, {"modules_to_save": ["pooler"]}, ("classifier", "pooler")),
    "transposed weights": Case("gpt2", 8, {"target_modules": "all-linear"}, ("score",)),
}
HEAD_MODELS = {  # a head of one layer, of several inside one module, of two modules, without a bias
    "bert": CASES["two factors"],
    "roberta": CASES["row space"],
    "distilbert": Case("distilbert", 4, {}, ("pre_classifier", "classifier")),
    "gpt2": CASES["transposed weights"],
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_model = pytest.mark.parametrize("case", HEAD_MODELS.values(), ids=HEAD_MODELS)


def is_factor(name):
    return re.search(r"\.lsr_[AB]\d", name) is not None


def is_head(case, name):
    return any(f"{head}.modules_to_save." in name for head in case.heads)


def is_chosen_bias(case, name):
    if not name.endswith("bias") or "original_module" in name:  # a head that was replaced is out of use
        return False
    return {"none": False, "all": True, "lsr_only": "base_layer.bias" in name}[case.fields.get("bias", "none")]


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model, steps=2, learning_rate=0.01):
    """Fit the fixed labels; return the losses, and for each trainable tensor whether it ever had a gradient."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=learning_rate)
    losses, moved = [], dict.fromkeys(trainable(model), False)
    for _ in range(steps):
        loss = model(**tokens(), **LABELLED).loss
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in trainable(model).items():
            moved[name] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses, moved


def trained(case, **fields):
    model = case.adapted(**fields)
    train(model)
    return model


def base_hash(model):
    """A digest of everything that is frozen, by its name in the base model."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not is_factor(name) and "modules_to_save" not in name:
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# A fresh adapter


@each_case
def test_a_fresh_adapter_changes_no_bit(case):
    assert torch.equal(logits(case.adapted()), logits(tiny(case.model)))


@each_case
def test_with_both_sides_random_the_model_differs(case):
    assert not torch.allclose(logits(case.adapted(init_weights=False)), logits(tiny(case.model)))


@each_case
def test_exactly_the_expected_layers_are_adapted(case):
    model = case.adapted()
    assert len(adapted_layers(model)) == case.layers
    assert list(adapted_layers(model)) == model.base_model.targeted_module_names


def test_patterns_choose_rank_terms_and_alpha_of_single_layers():
    layers = adapted_layers(CASES["patterns"].adapted())
    prefix = "bert.encoder.layer."
    chosen = {
        name.removeprefix(prefix): (layer.form["default"].rank_shape, layer.form["default"].separation_rank)
        for name, layer in layers.items()
    }
    assert chosen == {
        "0.attention.self.query": ((1, 2), 3),
        "0.attention.self.key": ((2, 2), 1),
        "0.attention.self.value": ((2, 2), 3),
        "1.attention.self.query": ((1, 2), 3),
        "1.attention.self.key": ((2, 2), 1),
        "1.attention.self.value": ((2, 1, 1), 3),
    }
    scalings = {name.removeprefix(prefix): layer.scaling["default"] for name, layer in layers.items()}
    assert scalings["0.attention.self.query"] == 3 / 2
    assert scalings["1.attention.self.query"] == 7 / 2
    assert scalings["0.attention.self.key"] == 7 / 4


def test_a_padded_case_is_padded():
    shapes = {layer.form["default"].in_shape for layer in adapted_layers(CASES["padded width"].adapted()).values()}
    assert shapes == {(9, 7)}  # 63 for a width of 62


def test_own_shapes_are_used():
    for layer in adapted_layers(CASES["own shapes"].adapted()).values():
        assert (layer.form["default"].in_shape, layer.form["default"].out_shape) == ((5, 5), (2, 13))


# Training


@each_case
def test_only_factors_heads_and_chosen_biases_train(case):
    model = case.adapted()
    for name, parameter in model.named_parameters():
        expected = is_factor(name) or is_head(case, name) or is_chosen_bias(case, name)
        assert parameter.requires_grad == expected, name


@each_case
def test_every_trainable_tensor_gets_a_gradient_within_two_steps_and_moves(case):
    model = case.adapted()
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    _, had_gradient = train(model)
    for name, parameter in trainable(model).items():
        if not name.endswith("key.bias"):  # the softmax over keys does not see it
            assert had_gradient[name], name
            assert not torch.equal(parameter, before[name]), name


@each_model
def test_training_lowers_the_loss(case):
    losses, _ = train(case.adapted(), steps=25, learning_rate=0.01)
    assert losses[-1] < 0.6 * losses[0]


@each_model
def test_the_factors_alone_lower_the_loss(case):
    model = case.adapted(task_type=None, exclude_modules=list(case.heads))
    assert all(is_factor(name) for name in trainable(model))
    losses, _ = train(model, steps=25, learning_rate=0.02)
    assert losses[-1] < 0.97 * losses[0]


@each_model
def test_training_merging_and_unmerging_leave_the_base_weights(case):
    model = case.adapted()
    before = base_hash(model)
    train(model)
    assert base_hash(model) == before
    model.merge_adapter()
    assert base_hash(model) != before
    model.unmerge_adapter()
    assert base_hash(model) == before


@pytest.mark.parametrize("reentrant", [False, True])
@each_model
def test_gradient_checkpointing_gives_the_same_gradients(case, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = case.adapted(init_weights=False).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**tokens(), **LABELLED).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert_close(checkpointed[name], gradient)


# Saving and loading


@each_case
def test_a_trained_adapter_comes_back_bit_for_bit(case, tmp_path):
    model = trained(case)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(case.model), str(tmp_path))), logits(model))


@each_case
def test_it_comes_back_through_the_meta_device_too(case, tmp_path):
    model = trained(case)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny(case.model), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


@each_model
def test_the_auto_class_loads_base_and_adapter(case, tmp_path):
    base = tiny(case.model)
    base.save_pretrained(str(tmp_path / "base"))
    base.name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, case.config())
    train(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=LABELS).eval()
    assert torch.equal(logits(loaded), logits(model))


@each_case
def test_the_file_holds_the_factors_the_heads_and_the_chosen_biases(case, tmp_path):
    model = trained(case)
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    expected = {
        name.replace(".modules_to_save.default", "").removesuffix(".default"): parameter.numel()
        for name, parameter in trainable(model).items()
    }
    fixed = {name for name in written if ".lsr_fixed." in name}
    assert {name: tensor.numel() for name, tensor in written.items() if name not in fixed} == expected
    assert all(name.endswith("_slots") for name in fixed) or case.fields["seed"] is None
    counted = sum(layer.sizes("default").stored for layer in adapted_layers(model).values())
    assert sum(tensor.numel() for name, tensor in written.items() if ".lsr_" in name) == counted


@each_case
def test_saving_what_was_loaded_writes_the_same_bytes(case, tmp_path):
    trained(case).save_pretrained(str(tmp_path / "one"))
    PeftModel.from_pretrained(tiny(case.model), str(tmp_path / "one")).save_pretrained(str(tmp_path / "two"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_decomposes_nothing(tmp_path, monkeypatch, low_cpu_mem_usage):
    case = CASES["row space"]
    model = trained(case)
    model.save_pretrained(str(tmp_path))

    def refuse(*args, **kwargs):
        raise AssertionError("a decomposition was computed")

    monkeypatch.setattr(layer_module, "begin", refuse)
    monkeypatch.setattr(spectrum, "svd_interface", refuse)
    loaded = PeftModel.from_pretrained(tiny(case.model), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))


def test_a_loaded_adapter_is_frozen_unless_it_is_to_be_trained(tmp_path):
    case = CASES["two factors"]
    trained(case).save_pretrained(str(tmp_path))
    assert not trainable(PeftModel.from_pretrained(tiny(case.model), str(tmp_path)))
    further = PeftModel.from_pretrained(tiny(case.model), str(tmp_path), is_trainable=True)
    assert trainable(further).keys() == trainable(case.adapted()).keys()


def test_the_causal_model_comes_back_bit_for_bit(tmp_path):
    model = get_peft_model(
        tiny("gpt2-causal"), LsrConfig(task_type="CAUSAL_LM", separation_rank=2, init_weights=False, seed=0)
    ).eval()
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("gpt2-causal"), str(tmp_path))), logits(model))
    generated = model.generate(**{name: ids[:1] for name, ids in tokens().items()}, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 12)


# Merging


@each_case
def test_the_merged_adapter_computes_what_the_forward_does_and_unmerging_restores_it(case):
    model = case.adapted(init_weights=False)
    before, weights = logits(model), base_hash(model)
    model.merge_adapter()
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    assert base_hash(model) == weights


@each_model
def test_merge_and_unload_gives_a_plain_model_with_the_trained_head(case):
    model = trained(case)
    before = logits(model)
    assert not torch.allclose(before, logits(tiny(case.model)), atol=1e-4)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is type(tiny(case.model))
    assert not any(isinstance(module, LsrLayer) for module in merged.modules())
    assert merged.state_dict().keys() == tiny(case.model).state_dict().keys()
    assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)


@each_model
def test_a_merged_model_saves_and_loads_as_a_plain_one(case, tmp_path):
    merged = trained(case).merge_and_unload()
    merged.save_pretrained(str(tmp_path))
    assert torch.equal(logits(type(merged).from_pretrained(str(tmp_path)).eval()), logits(merged))


@each_model
def test_unloading_gives_the_base_back_bit_for_bit(case):
    model = trained(case)
    unloaded = model.unload()
    names = [name for name, _ in tiny(case.model).named_parameters() if not name.startswith(case.heads)]
    assert names
    for name in names:
        assert torch.equal(unloaded.get_parameter(name), tiny(case.model).get_parameter(name)), name


@each_model
def test_a_safe_merge_of_a_broken_adapter_raises_and_leaves_the_broken_layer(case):
    model = case.adapted(init_weights=False)
    name, layer = next(iter(adapted_layers(model).items()))
    layer.lsr_A1["default"].data[0, 0, 0] = float("nan")
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=f"NaNs detected in the merged weights of {name!r}"):
        model.merge_and_unload(safe_merge=True)
    assert torch.equal(layer.weight, before)


@each_model
def test_the_disabled_adapter_leaves_the_base_model(case):
    model = trained(case)
    before = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny(case.model)))
    assert torch.equal(logits(model), before)


# Several adapters


def with_two(case):
    model = case.adapted(init_weights=False)
    model.add_adapter("second", case.config(**SECOND, init_weights=False))
    return model.eval()


@each_model
def test_a_second_adapter_leaves_the_first_untouched_and_inactive(case):
    model = case.adapted(init_weights=False)
    before, factors = logits(model), {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    model.add_adapter("second", case.config(**{**SECOND, "init_weights": "row_space"}))
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), before)
    after = get_peft_model_state_dict(model)
    assert factors.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in factors.items())
    assert not any("second" in name for name in trainable(model))


@each_model
def test_switching_between_two_adapters_gives_each_its_own_output(case):
    model = with_two(case)
    alone = case.adapted(init_weights=False, **SECOND)
    first = logits(model)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(alone))
    assert {name for name in trainable(model) if is_factor(name)} == {
        name for name, _ in model.named_parameters() if is_factor(name) and name.endswith(".second")
    }
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


@each_model
def test_two_active_adapters_add_up(case):
    headless = {"task_type": None, "exclude_modules": list(case.heads)}  # PEFT allows one active head only
    model = case.adapted(init_weights=False, **headless)
    model.add_adapter("second", case.config(**SECOND, init_weights=False, **headless))
    model.eval().base_model.set_adapter(["default", "second"])
    both = logits(model)
    plain = tiny(case.model)
    for name, layer in adapted_layers(model).items():
        plain.get_submodule(name).weight.data += layer.get_delta_weight("default") + layer.get_delta_weight("second")
    assert_close(both, logits(plain), atol=1e-5, rtol=1e-5)
    model.merge_adapter()
    assert_close(logits(model), both, atol=1e-5, rtol=1e-5)


@each_model
def test_deleting_the_second_adapter_leaves_nothing_of_it(case):
    model = with_two(case)
    first = logits(model)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not [name for name in model.state_dict() if "second" in name]
    assert all(layer.scaling.keys() == {"default"} for layer in adapted_layers(model).values())


def test_deleting_the_active_adapter_activates_the_other():
    case = CASES["two factors"]
    model = with_two(case)
    with pytest.warns(UserWarning, match="Adapter default was active"):
        model.delete_adapter("default")
    assert torch.equal(logits(model), logits(case.adapted(init_weights=False, **SECOND)))


def test_two_adapters_save_and_load_apart(tmp_path):
    case = CASES["two factors"]
    model = with_two(case)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny(case.model), str(tmp_path))
    loaded.load_adapter(str(tmp_path / "second"), "second")
    for name in ("default", "second"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))


def test_a_second_adapter_may_sit_on_other_layers(tmp_path):
    case = CASES["two factors"]
    model = case.adapted(init_weights=False)
    first = logits(model)
    model.add_adapter("second", case.config(**SECOND, init_weights=False, target_modules="all-linear"))
    assert torch.equal(logits(model), first)
    assert len(model.peft_config["second"].target_modules) == 13
    model.set_adapter("second")
    alone = case.adapted(**SECOND, init_weights=False, target_modules="all-linear")
    assert torch.equal(logits(model), logits(alone))
    assert len(adapted_layers(model)) == 13
    model.save_pretrained(str(tmp_path), selected_adapters=["second"])
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "second"))), logits(alone))


def test_copies_of_a_model_are_independent():
    model = with_two(CASES["two factors"])
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    before = logits(model)
    train(twin)
    assert torch.equal(logits(model), before)


# The start of each layer


@pytest.mark.parametrize("init", [True, False, "row_space"])
def test_a_layer_starts_the_same_whatever_other_layers_are_adapted(init):
    case = CASES["two factors"]
    few = adapted_layers(case.adapted(init_weights=init, target_modules=["value"]))
    many = adapted_layers(case.adapted(init_weights=init, target_modules="all-linear"))
    assert len(few) == 2
    for name, layer in few.items():
        a, b = layer.factors("default")
        other_a, other_b = many[name].factors("default")
        assert all(torch.equal(one, two) for one, two in zip([*a, *b], [*other_a, *other_b], strict=True))


def test_without_a_seed_torchs_generator_starts_the_layers():
    case = CASES["two factors"]
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(get_peft_model_state_dict(case.adapted(seed=None)))
    (one, again, other), name = runs, "base_model.model.bert.encoder.layer.0.attention.self.query.lsr_A1"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])


# Precision


@pytest.mark.parametrize("init", [True, "row_space"])
@each_model
def test_a_bfloat16_base_trains_full_precision_factors_and_comes_back_bit_for_bit(case, init, tmp_path):
    base = tiny(case.model).bfloat16()
    model = get_peft_model(copy.deepcopy(base), case.config(init_weights=init)).eval()
    assert {p.dtype for name, p in trainable(model).items() if is_factor(name)} == {torch.float32}
    assert torch.equal(logits(model), logits(base))
    train(model)
    factors = {name: p for name, p in trainable(model).items() if is_factor(name)}
    assert {p.grad.dtype for p in factors.values()} == {torch.float32}
    assert all(p.grad.any() for p in factors.values())
    assert logits(model).dtype is logits(base).dtype
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))), logits(model))


@each_model
def test_autocast_trains_in_bfloat16(case):
    model = case.adapted().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**tokens(), **LABELLED).loss
    loss.backward()
    assert {p.grad.dtype for p in trainable(model).values() if p.grad is not None} == {torch.float32}
    assert all(p.grad.any() for name, p in trainable(model).items() if ".lsr_B1." in name)


# What PEFT reports


@each_model
def test_the_reports_of_peft_count_and_name_what_is_there(case, capsys):
    model = case.adapted()
    count = sum(parameter.numel() for parameter in trainable(model).values())
    model.print_trainable_parameters()
    assert f"trainable params: {count:,} ||" in capsys.readouterr().out
    layers = [layer for layer in model.get_layer_status() if layer.name.removeprefix("model.") not in case.heads]
    assert [layer.name.removeprefix("model.") for layer in layers] == list(adapted_layers(model))
    assert {layer.module_type for layer in layers} == {"lsr.LsrLinear"}
    assert {layer.requires_grad["default"] for layer in layers} == {True}
    status = model.get_model_status()
    assert status.trainable_params == count
    assert status.adapter_model_type == LsrModel.__name__
    assert status.peft_types == {"default": "LSR"}
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])


def test_an_adapted_layer_prints_as_what_it_is():
    assert repr(next(iter(adapted_layers(CASES["two factors"].adapted()).values()))).startswith("lsr.LsrLinear(")


# Mistakes


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        (
            {"target_modules": ["query", "valeu"]},
            ValueError,
            "target_modules: no layer is named 'valeu'; did you mean 'value'?",
        ),
        ({"target_modules": ["query", "zzz"]}, ValueError, "target_modules: no layer is named 'zzz'"),
        ({"target_modules": ".*querry"}, ValueError, "target_modules: '.*querry' matches no layer"),
        (
            {"exclude_modules": ["quer"]},
            ValueError,
            "exclude_modules: no layer is named 'quer'; did you mean 'query'?",
        ),
        ({"exclude_modules": "quer.*"}, ValueError, "exclude_modules: 'quer.*' matches no layer"),
        (
            {"target_modules": ["word_embeddings"]},
            TypeError,
            "layer 'bert.embeddings.word_embeddings' cannot be adapted: it must be Linear or Conv1D, got Embedding",
        ),
        (
            {"rank_pattern": {"quary": (1, 1)}},
            ValueError,
            "rank_pattern: 'quary' matches no adapted layer; did you mean 'query'?",
        ),
        (
            {"separation_rank_pattern": {"intermediate.dense": 2}},  # a layer, but not an adapted one
            ValueError,
            "separation_rank_pattern: 'intermediate.dense' matches no adapted layer",
        ),
        ({"alpha_pattern": {"key": 2}}, ValueError, "alpha_pattern: 'key' matches no adapted layer"),
        (
            {"target_modules": ["query"], "layers_to_transform": [0, 2]},
            ValueError,
            "layers_to_transform: no adapted layer has the index 2",
        ),
        (
            {"separation_rank": 9},
            ValueError,
            "layer 'bert.encoder.layer.0.attention.self.query': separation_rank must be in [1, 8]",
        ),
        (
            {"separation_rank_pattern": {"1.attention.self.value": 9}},
            ValueError,
            "layer 'bert.encoder.layer.1.attention.self.value': separation_rank must be in [1, 8]",
        ),
        (
            {"in_shape": (4, 5)},
            ValueError,
            "in_shape must hold 2 sizes with a product >= 24, such as [6, 4], got [4, 5]",
        ),
        (
            {"init_weights": "row_space", "rank_shape": (5, 5), "separation_rank": 1},
            ValueError,
            "layer 'bert.encoder.layer.0.attention.self.query': the rank must be in [1, 24]",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_name_and_what_is_there(fields, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        CASES["two factors"].adapted(**fields)


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["valeu"]}, {"alpha_pattern": {"key": 2}}, {"exclude_modules": ["quer"]}]
)
def test_a_name_that_matches_nothing_leaves_the_model_as_it_was(fields):
    base = tiny("bert")
    with pytest.raises(ValueError, match=r"no (adapted )?layer"):
        get_peft_model(base, CASES["two factors"].config(**fields))
    assert not any(isinstance(module, LsrLayer) for module in base.modules())


def test_an_internal_part_of_an_adapted_layer_is_no_target():
    model = CASES["two factors"].adapted()
    with pytest.raises(ValueError, match="target_modules: no layer is named 'base_layer'"):
        model.add_adapter("second", LsrConfig(target_modules=["base_layer"]))
    assert list(model.peft_config) == ["default"]


def test_a_model_without_usual_targets_asks_for_them():
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LsrConfig())
