"""Every initialization on a model: what it leaves unchanged, what its file holds, and how it comes back."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.init import INITIALIZATIONS
from lsr.init.examples import weight_gradients
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import LABELS, logits, tiny, tokens

pytestmark = pytest.mark.usefixtures("remembered_fits")

SHAPES = {"separation_rank": 3, "rank_shape": (2, 2), "alpha": 7, "seed": 0, "task_type": "SEQ_CLS"}
FOLDED = [word for word, one in INITIALIZATIONS.items() if one.folds]
UNFOLDED = [word for word, one in INITIALIZATIONS.items() if not one.folds]
MODELS = ("bert", "bert-padded", "gpt2")  # Conv1D is the other layout

each_model = pytest.mark.parametrize("name", MODELS)
each_way = pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
each_word = pytest.mark.parametrize("init", INITIALIZATIONS)
each_folded = pytest.mark.parametrize("init", FOLDED)
each_part = pytest.mark.parametrize("part", ["factors"])


def adapted(name="bert", **fields):
    """A model whose adapter has started, from examples too."""
    model = get_peft_model(tiny(name), LsrConfig(**{**SHAPES, **fields})).eval()
    if fields.get("init_weights") == "gradient":
        start_from_examples(model, examples())
    return model


def base_weights(model):
    return {name: layer.base_parameter().detach().clone() for name, layer in adapted_layers(model).items()}


def tensors_of(model):
    """Factors and starts by name: parameters and buffers."""
    return {name: value for name, value in model.state_dict().items() if ".lsr_adapters." in name}


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


def forbid_initializations(monkeypatch):
    """Have every initialization fail: nothing may be decomposed while loading."""

    def fail(source):
        raise AssertionError("an initialization ran while loading")

    for word, one in INITIALIZATIONS.items():
        monkeypatch.setitem(INITIALIZATIONS, word, one._replace(start=fail))


# A fresh adapter


@each_model
@pytest.mark.parametrize("init", UNFOLDED)
def test_a_fresh_adapter_with_b1_zero_changes_no_bit(name, init):
    assert torch.equal(logits(adapted(name, init_weights=init)), logits(tiny(name)))


@each_model
@each_folded
def test_a_fresh_folded_adapter_changes_rounding_alone(name, init):
    assert_close(logits(adapted(name, init_weights=init)), logits(tiny(name)), atol=1e-5, rtol=1e-5)


@each_folded
def test_a_subtracted_start_is_not_zero(init):
    for layer in adapted_layers(adapted(init_weights=init)).values():
        a, b = layer.adapter("default").collapse()
        assert (b @ a).norm() > 0.05 * layer.base_matrix().norm()


@each_word
@each_part
def test_every_trained_factor_moves_and_every_frozen_one_stays(part, init):
    model = adapted(init_weights=init, train=part)
    before, trained = copy.deepcopy(tensors_of(model)), {n for n, p in model.named_parameters() if p.requires_grad}
    train(model)
    moved = {name for name, value in tensors_of(model).items() if not torch.equal(value, before[name])}
    assert moved == trained & before.keys()
    ends = {name.rpartition(".")[2] for name in moved}
    assert ends == {"factor_A1", "factor_B1"} | ({"factor_A2", "factor_B2"} if part == "factors" else set())


@each_folded
def test_what_moves_is_the_difference_to_the_start(init):
    model = adapted(init_weights=init)
    starts = {name: layer.adapter("default").collapse() for name, layer in adapted_layers(model).items()}
    starts = {name: (b @ a).detach() for name, (a, b) in starts.items()}
    train(model)
    for name, layer in adapted_layers(model).items():
        adapter = layer.adapter("default")
        a, b = adapter.collapse()
        delta = layer.get_delta_weight("default")
        assert_close(delta, adapter.scaling * (b @ a - starts[name]), atol=1e-6, rtol=1e-4)
        assert torch.linalg.matrix_rank(delta) <= 2 * adapter.form.rank


# Forward = merged = LoRA


@each_model
@pytest.mark.parametrize("init", ["random", "principal"])
def test_forward_and_merged_and_lora_agree(name, init):
    model = train(adapted(name, init_weights=init))
    expected = logits(model)
    plain = tiny(name)
    for layer_name, layer in adapted_layers(model).items():
        a, b = layer.adapter("default").as_lora()
        update = layer.adapter("default").scaling * (b @ a)
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
    return adapted(**{"init_weights": "principal", **fields})


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
    model.add_adapter("second", LsrConfig(**SHAPES, init_weights="random"))
    alone = adapted(init_weights="random")
    for one, two in zip(adapted_layers(model).values(), adapted_layers(alone).values(), strict=True):
        for first, second in zip(one.adapter("second").factors()[0], two.adapter("default").factors()[0], strict=True):
            assert torch.equal(first, second)


# Files


@each_way
@each_part
@each_word
def test_an_adapter_comes_back_bit_for_bit_and_nothing_is_decomposed(
    init, part, low_cpu_mem_usage, tmp_path, monkeypatch
):
    model = train(adapted(init_weights=init, train=part)).eval()
    expected, tensors, weights = logits(model), tensors_of(model), base_weights(model)
    forbid_initializations(monkeypatch)
    loaded = reload(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert tensors_of(loaded).keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in tensors_of(loaded).items())
    assert all(torch.equal(weight, weights[name]) for name, weight in base_weights(loaded).items())
    assert torch.equal(logits(loaded), expected)


@each_way
def test_frozen_factors_drawn_without_a_seed_come_back_too(low_cpu_mem_usage, tmp_path):
    model = train(adapted(seed=None)).eval()
    assert torch.equal(logits(reload(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)), logits(model))


@each_part
@each_word
def test_the_file_holds_every_factor_and_the_start_if_that_is_folded(init, part, tmp_path):
    adapted(init_weights=init, train=part).save_pretrained(str(tmp_path))
    names = [n for n in load_file(tmp_path / "adapter_model.safetensors") if ".lsr_adapters." in n]
    kinds = ("factor", "folded") if init in FOLDED else ("factor",)
    assert {n.rpartition(".")[2] for n in names} == {f"{k}_{side}{i}" for k in kinds for side in "AB" for i in (1, 2)}
    assert len(names) == 4 * 4 * len(kinds)


@each_way
@each_folded
def test_a_loaded_start_is_subtracted_from_the_base_weight(init, low_cpu_mem_usage, tmp_path):
    loaded = reload(adapted(init_weights=init), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert_close(logits(loaded), logits(tiny("bert")), atol=1e-5, rtol=1e-5)
    for name, layer in adapted_layers(loaded).items():
        pretrained = tiny("bert").get_submodule(name).weight
        assert_close(layer.base_parameter(), pretrained - layer.adapter("default").folded_update())
        assert not torch.equal(layer.base_parameter(), pretrained)
        assert torch.equal(layer.pretrained_weight(), pretrained)


@each_way
@each_part
def test_another_base_model_is_refused_by_the_name_of_the_layer(part, low_cpu_mem_usage, tmp_path):
    adapted(init_weights="principal", train=part).save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.bert.encoder.layer[1].attention.self.value.weight.data[0, 0] += 1e-6
    message = r"layer 'bert.encoder.layer.1.attention.self.value': this is not the base model .* has another hash"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(other, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)


@each_way
def test_another_base_model_is_fine_where_nothing_is_subtracted(low_cpu_mem_usage, tmp_path):
    adapted(init_weights="random").save_pretrained(str(tmp_path))
    other = tiny("bert")
    other.bert.encoder.layer[1].attention.self.value.weight.data[0, 0] += 1e-6
    expected = logits(other)
    loaded = PeftModel.from_pretrained(other, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded.eval()), expected)


@each_way
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_base_weight_without_values_is_refused_in_one_line(low_cpu_mem_usage, tmp_path):
    adapted(init_weights="principal").save_pretrained(str(tmp_path))
    with torch.device("meta"):
        empty = type(tiny("bert"))(tiny("bert").config)
    message = r"^layer 'bert\.encoder.*': cannot subtract an initial update from a base weight without values$"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(empty, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)


@each_way
def test_a_file_without_the_hash_of_a_weight_is_refused(low_cpu_mem_usage, tmp_path):
    adapted(init_weights="principal").save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["resolved"]["base_hashes"].popitem()
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"resolved: base_hashes has no entry for layer 'bert\.encoder\..*'"):
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)


@each_way
@pytest.mark.parametrize("name", ["bert", "bert-padded"])
@each_word
def test_the_file_does_not_depend_on_how_a_width_is_split(name, init, low_cpu_mem_usage, tmp_path, monkeypatch):
    model = train(adapted(name, init_weights=init)).eval()
    model.save_pretrained(str(tmp_path))
    monkeypatch.setattr("lsr.tuner.forms.split_width", lambda width, rank_shape: (width, 2))
    assert {layer.adapter("default").form.in_shape for layer in adapted_layers(adapted(name)).values()} != {
        layer.adapter("default").form.in_shape for layer in adapted_layers(model).values()
    }
    loaded = PeftModel.from_pretrained(tiny(name), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded.eval()), logits(model))


@each_part
@each_word
def test_sizes_tell_what_is_trained_from_what_is_stored_and_used(init, part):
    model = adapted("bert-padded", init_weights=init, train=part)
    for name, layer in adapted_layers(model).items():
        form, sizes = layer.adapter("default").form, layer.sizes("default")
        own = [value for key, value in tensors_of(model).items() if f"{name}.lsr_adapters." in key]
        trained = [p for p in layer.adapter("default").parameters() if p.requires_grad]
        assert sizes.trained == sum(p.numel() for p in trained)
        assert sizes.stored == sum(value.numel() for value in own)
        assert sizes.effective == form.parameters


@pytest.mark.parametrize("init", ["random", "principal"])
@each_part
@each_way
def test_what_is_loaded_trains_only_if_that_is_asked_for(part, init, low_cpu_mem_usage, tmp_path):
    model = adapted(init_weights=init, train=part)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    loaded = reload(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    again = reload(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True)
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == trained
    assert {name.rpartition(".")[2] for name in trained} == {
        *("weight", "bias", "factor_A1", "factor_B1"),  # of the head, and of the factors
        *(("factor_A2", "factor_B2") if part == "factors" else ()),
    }


# Starts from examples


def test_a_start_from_examples_changes_no_bit_and_differs_from_a_random_one():
    model, random = adapted(init_weights="gradient"), adapted(init_weights="random")
    assert torch.equal(logits(model), logits(tiny("bert")))
    for one, two in zip(adapted_layers(model).values(), adapted_layers(random).values(), strict=True):
        assert not torch.equal(one.adapter("default").factors()[0][0], two.adapter("default").factors()[0][0])


def test_the_gradient_start_points_along_the_gradient():
    model = adapted(init_weights="gradient", separation_rank=8, rank_shape=(2, 2))
    plain = tiny("bert")
    plain.load_state_dict(adapted(init_weights="gradient").unload().state_dict())
    layers = {name: plain.get_submodule(name) for name in adapted_layers(model)}
    gradients = weight_gradients(plain, layers, examples())
    for name, layer in adapted_layers(model).items():
        a, _ = layer.adapter("default").collapse()
        basis = torch.linalg.qr(a.detach().double().T).Q
        assert (gradients[name] @ basis).norm() > 0.5 * gradients[name].norm()


def test_examples_for_a_start_that_reads_none_are_refused():
    with pytest.raises(
        ValueError,
        match="init_weights must be 'gradient' or 'update' or 'warm' to start from examples, got 'random'",
    ):
        start_from_examples(adapted(init_weights="random"), examples())


def test_a_start_from_examples_without_examples_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        start_from_examples(get_peft_model(tiny("bert"), LsrConfig(**SHAPES, init_weights="gradient")), [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "frozen"}, r"train must be one of \['factors', 'core', 'all'\], got 'frozen'"),
        ({"init_weights": "activation"}, r"init_weights must be a bool or one of \['random', .*\], got 'activation'"),
    ],
)
def test_words_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LsrConfig(**{"separation_rank": 3, **fields})
