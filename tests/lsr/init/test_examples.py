from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.init.examples import weight_gradients
from tests.capabilities.models import LABELS, tiny, tokens

LAYERS = {
    "bert": ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.query"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"],  # weights stored as (n, m)
}


def examples(rows=6, **changed):
    return {**tokens(rows), "labels": torch.arange(rows) % LABELS, **changed}


def split(batch, *sizes):
    parts = {name: value.split(list(sizes)) for name, value in batch.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(len(sizes))]


def select(model, names):
    return {name: model.get_submodule(name) for name in names}


def double(name):
    """A model in float64: what is left of rounding is far below what is tested."""
    model = tiny(name).double()
    return model, select(model, LAYERS[name])


def as_matrix(layer, gradient):
    return gradient if isinstance(layer, nn.Linear) else gradient.T


class Tiny(nn.Module):
    """A model of two linear layers, one of them called `calls` times, that shapes its inputs as `shape` says."""

    def __init__(self, calls=1, shape=None):
        super().__init__()
        self.layer = nn.Linear(3, 3).double()
        self.unused = nn.Linear(3, 3).double()
        self.calls = calls
        self.shape = shape

    def forward(self, x, attention_mask=None, labels=None):
        x = x if self.shape is None else x.reshape(self.shape)
        for _ in range(self.calls):
            y = self.layer(x)
        return SimpleNamespace(loss=None if labels is None else (y.square().mean() + self.unused.bias.sum()))


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# Values


@settings(max_examples=10)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_cut_into_batches_changes_no_gradient(sizes):
    model, layers = double("gpt2")
    batch = examples(rows=sum(sizes))
    whole, parts = (weight_gradients(model, layers, batches) for batches in ([batch], split(batch, *sizes)))
    for layer in layers:
        assert_close(parts[layer], whole[layer])


@pytest.mark.parametrize("shape", [None, (-1, 3)])
def test_every_call_of_a_layer_counts(shape):
    x, model = normal(2, 3), Tiny(calls=2, shape=shape)
    (found,) = weight_gradients(model, {"it": model.layer}, [{"x": x, "labels": torch.zeros(2)}]).values()
    model(x, labels=torch.zeros(2)).loss.backward()
    assert_close(found, model.layer.weight.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_is_what_backward_gives(name):
    model, layers = double(name)
    model(**examples()).loss.backward()
    found = weight_gradients(model, layers, [examples()])
    for key, layer in layers.items():
        assert found[key].shape == as_matrix(layer, layer.weight).shape
        assert_close(found[key], as_matrix(layer, layer.weight.grad))


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_is_the_mean_over_examples_not_over_batches(name):
    model, layers = double(name)
    found = weight_gradients(model, layers, split(examples(), 5, 1))
    total = sum(model(**one).loss for one in split(examples(), *[1] * 6))
    expected = torch.autograd.grad(total / 6, [layer.weight for layer in layers.values()])
    for gradient, wanted, layer in zip(found.values(), expected, layers.values(), strict=True):
        assert_close(gradient, as_matrix(layer, wanted))


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(sorted(LAYERS)))
def test_a_gradient_is_the_slope_of_the_loss(seed, name):
    model, layers = double(name)
    key, layer = list(layers.items())[seed % 2]
    gradient = weight_gradients(model, layers, [examples()])[key]
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def loss(step):  # at W + step * direction
        moved = tiny(name).double()
        moved.get_submodule(key).weight.data += step * as_matrix(layer, direction)
        return moved(**examples()).loss

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert_close((gradient * direction).sum(), slope.detach(), rtol=1e-5, atol=1e-8)


def test_no_other_parameter_takes_part():
    model, layers = double("bert")
    taking_part = []

    def note(*_):
        taking_part.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})

    with model.register_forward_hook(note):
        weight_gradients(model, layers, [examples()])
    assert taking_part == [{f"{name}.weight" for name in layers}]


def test_gradients_are_computed_under_no_grad_too():
    model, layers = double("bert")
    expected = weight_gradients(model, layers, [examples()])
    with torch.no_grad():
        found = weight_gradients(model, layers, [examples()])
    for layer in layers:
        assert torch.equal(found[layer], expected[layer])


def test_progress_is_told_after_each_batch():
    model, layers = double("bert")
    told = []
    weight_gradients(model, layers, split(examples(), 1, 2, 3), progress=told.append)
    assert told == [1, 2, 3]


# Memory


@pytest.mark.parametrize("name", LAYERS)
def test_no_more_than_one_gradient_of_a_weight_is_alive(name):
    model, layers = double(name)
    alive = []

    def count(_):
        alive.append(sum(layer.weight.grad is not None for layer in layers.values()))

    for layer in layers.values():  # before the hooks that free them
        layer.weight.register_post_accumulate_grad_hook(count)
    weight_gradients(model, layers, split(examples(), 2, 4))
    assert alive == [1, 1] * len(layers)


@pytest.mark.parametrize("name", LAYERS)
def test_a_large_layer_gives_a_pair_whose_product_is_its_gradient(name):
    """With six examples of nine tokens, and 24 columns, the gradient has the full rank."""
    model, layers = double(name)
    dense = weight_gradients(model, layers, split(examples(), 2, 4))
    found = weight_gradients(model, layers, split(examples(), 2, 4), dense_entries=24 * 24 - 1, rank=12)
    for layer, (left, right) in found.items():
        assert (left.shape[0], right.shape[1]) == dense[layer].shape
        assert_close(left @ right, dense[layer], rtol=1e-6, atol=1e-9)


def test_a_gradient_of_low_rank_is_exact_in_a_small_sketch():
    """One example of three numbers: the outer product of two vectors."""
    x, model = normal(1, 3), Tiny()
    batches, layers = [{"x": x, "labels": torch.zeros(1)}], {"it": model.layer}
    left, right = weight_gradients(model, layers, batches, dense_entries=0, rank=1)["it"]
    assert_close(left @ right, weight_gradients(model, layers, batches)["it"])


def test_the_entries_of_a_layer_decide_whether_it_is_sketched():
    model = tiny("bert").double()
    layers = select(model, ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.intermediate.dense"])
    query, dense = weight_gradients(model, layers, [examples()], dense_entries=24 * 24, rank=2).values()
    assert query.shape == (24, 24)
    assert [side.shape for side in dense] == [(40, 5), (5, 24)]


def test_the_seed_draws_what_a_sketch_needs():
    model, layers = double("bert")
    one, two, other = (
        weight_gradients(model, layers, [examples()], dense_entries=0, rank=2, seed=seed) for seed in (0, 0, 1)
    )
    for layer in layers:
        assert all(torch.equal(x, y) for x, y in zip(one[layer], two[layer], strict=True))
        assert not torch.equal(one[layer][0], other[layer][0])


def test_layers_with_one_weight_have_one_gradient():
    model, layers = double("bert")
    first, second = layers.values()
    second.weight = first.weight
    model(**examples()).loss.backward()
    found = weight_gradients(model, layers, [examples()])
    for gradient in found.values():
        assert_close(gradient, first.weight.grad)


# What a measurement leaves alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_float64_on_the_cpu(dtype):
    model = tiny("gpt2").to(dtype)
    found = weight_gradients(model, select(model, LAYERS["gpt2"]), [examples()])
    assert all((value.dtype, value.device.type) == (torch.float64, "cpu") for value in found.values())


def test_random_numbers_go_on_as_if_nothing_had_been():
    class Drawing(Tiny):
        def forward(self, x, **fields):
            return super().forward(x + torch.randn(x.shape), **fields)

    model = Drawing()
    before = torch.get_rng_state()
    weight_gradients(model, {"it": model.layer}, [{"x": normal(2, 3), "labels": torch.zeros(2)}])
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_read_once():
    model, layers = double("bert")
    found = weight_gradients(model, layers, iter(split(examples(), 2, 4)))
    expected = weight_gradients(model, layers, split(examples(), 2, 4))
    assert all(torch.equal(found[layer], expected[layer]) for layer in layers)


@pytest.mark.parametrize("name", LAYERS)
def test_two_runs_give_the_same_bytes(name):
    def run():
        model = tiny(name)
        found = weight_gradients(model, select(model, LAYERS[name]), split(examples(), 2, 4))
        return [value.numpy().tobytes() for value in found.values()]

    assert run() == run()


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_layers_in_a_peft_model_give_the_same(name):
    model, layers = double(name)
    expected = weight_gradients(model, layers, [examples()])
    config = LsrConfig(
        task_type="SEQ_CLS", rank_shape=(2, 2), separation_rank=2, target_modules=list(layers), dropout=0.5, seed=0
    )
    wrapped = get_peft_model(tiny(name).double(), config, autocast_adapter_dtype=False)
    inside = select(wrapped, [f"base_model.model.{layer}.base_layer" for layer in layers])
    found = weight_gradients(wrapped, inside, [examples()])
    for value, wanted in zip(found.values(), expected.values(), strict=True):
        assert_close(value, wanted)


def with_dropout(name):
    """A model in training mode, but for one part; with dropout, with a frozen weight and with gradients."""
    model, layers = double(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model(**examples()).loss.backward()
    next(iter(layers.values())).weight.requires_grad_(False)
    model.train()
    next(iter(layers.values())).eval()
    return model, layers


def state(model):
    """Everything that a measurement might leave changed. Tensors are named by identity and by value."""
    return (
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [(id(parameter.grad), parameter.grad.numpy().tobytes()) for parameter in model.parameters()],
        [parameter.detach().numpy().tobytes() for parameter in model.parameters()],
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_measurement_leaves_the_model_as_it_was(name):
    model, layers = with_dropout(name)
    before = state(model)
    weight_gradients(model, layers, split(examples(), 2, 4))
    assert state(model) == before


def test_a_failed_measurement_leaves_the_model_as_it_was():
    model, layers = with_dropout("bert")
    before = state(model)
    with pytest.raises(IndexError):
        weight_gradients(model, layers, [examples(), examples(input_ids=torch.full((6, 9), 10**6))])
    assert state(model) == before


def test_dropout_is_off_while_measuring():
    model, layers = with_dropout("bert")
    plain = tiny("bert").double()
    expected = weight_gradients(plain, select(plain, LAYERS["bert"]), [examples()])
    found = weight_gradients(model, layers, [examples()])
    assert all(torch.equal(found[layer], expected[layer]) for layer in layers)


# Errors


def test_no_batch_is_an_error():
    model, layers = double("bert")
    with pytest.raises(ValueError, match="no examples"):
        weight_gradients(model, layers, [])


def test_a_layer_that_is_never_called_is_named():
    model = Tiny()
    layers = {"used": model.layer, "idle": model.unused}
    with pytest.raises(ValueError, match="layer 'idle' was never called"):
        weight_gradients(model, layers, [{"x": normal(2, 3), "labels": torch.zeros(2)}])


def test_a_layer_outside_the_model_is_named_and_left_frozen():
    model, outside = tiny("bert"), nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="layer 'outside' was never called"):
        weight_gradients(model, {"outside": outside}, [examples()])
    assert not outside.weight.requires_grad


def test_gradients_need_labels():
    model, layers = double("bert")
    with pytest.raises(ValueError, match="no loss: batches need labels, but these have input_ids, attention_mask"):
        weight_gradients(model, layers, [tokens()])


def with_broken_values():
    """The first block gives NaN to the second, but the first query still reads proper numbers."""
    model, layers = double("bert")
    model.bert.encoder.layer[0].attention.self.value.bias.data[0] = torch.nan
    return model, layers


@pytest.mark.parametrize("entries", [0, 10**6], ids=["sketch", "dense"])
def test_gradients_that_are_not_finite_name_the_layer(entries):
    model, layers = with_broken_values()
    first, _ = layers
    with pytest.raises(ValueError, match=rf"layer '{first}': its gradient over these examples is not finite"):
        weight_gradients(model, layers, [examples()], dense_entries=entries)
