"""Every initialization on a model: what it leaves unchanged, what its file holds, and how it comes back."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from lsr import LsrConfig, start_from_examples
from lsr.init import INITIALIZATIONS, READERS
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import LABELS, logits, tiny, tokens
from tests.lsr.init.models import batches

SHAPES = {"separation_rank": 3, "rank_shape": (2, 2), "alpha": 7, "seed": 0, "task_type": "SEQ_CLS"}
each_model = pytest.mark.parametrize("name", ["bert", "bert-padded", "gpt2"])  # Conv1D is the other layout
each_word = pytest.mark.parametrize("init", INITIALIZATIONS)


def adapted(name="bert", **fields):
    """A model whose adapter has started, from examples too."""
    model = get_peft_model(tiny(name), LsrConfig(**{**SHAPES, **fields})).eval()
    if INITIALIZATIONS[fields.get("init_weights", "random")].reads in READERS:
        start_from_examples(model, batches(4, 3), head_steps=5)
    return model


def folded(**fields):
    return adapted(**{"init_weights": "principal", **fields})


def base_weights(model):
    return {name: layer.base_parameter().detach().clone() for name, layer in adapted_layers(model).items()}


def tensors_of(model):
    """Factors and starts by name: parameters and buffers."""
    return {name: value for name, value in model.state_dict().items() if ".lsr_adapters." in name}


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        model(**tokens(), labels=torch.arange(4) % LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def reload(folder, base="bert", **options):
    return PeftModel.from_pretrained(tiny(base), str(folder), **options).eval()


# A fresh adapter


@each_model
@each_word
def test_a_fresh_adapter_changes_no_bit_but_by_folding_or_going_on(name, init):
    found, expected = logits(adapted(name, init_weights=init)), logits(tiny(name))
    if INITIALIZATIONS[init].folds:
        assert_close(found, expected, atol=1e-5, rtol=1e-5)  # rounding alone
    else:
        assert torch.equal(found, expected) != INITIALIZATIONS[init].goes_on


@each_word
def test_every_factor_moves_and_what_counts_is_the_difference_to_a_folded_start(init):
    model = adapted(init_weights=init)
    before, trained = copy.deepcopy(tensors_of(model)), {n for n, p in model.named_parameters() if p.requires_grad}
    starts = {name: layer.adapter("default").collapse() for name, layer in adapted_layers(model).items()}
    starts = {name: (b @ a).detach() for name, (a, b) in starts.items()}
    train(model)
    moved = {name for name, value in tensors_of(model).items() if not torch.equal(value, before[name])}
    assert moved == trained & before.keys()
    assert {name.rpartition(".")[2] for name in moved} == {"factor_A1", "factor_B1", "factor_A2", "factor_B2"}
    for name, layer in adapted_layers(model).items() if INITIALIZATIONS[init].folds else ():
        a, b = layer.adapter("default").collapse()
        expected = layer.adapter("default").scaling * (b @ a - starts[name])
        assert_close(layer.get_delta_weight("default"), expected, atol=1e-6, rtol=1e-4)


# The base weight under a folded start


def test_a_folded_start_changes_base_weights_in_memory_and_disabling_or_unloading_brings_the_bits_back():
    model, before = folded(), base_weights(adapted())
    assert not any(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny("bert")))
    assert not any(torch.equal(before[name], weight) for name, weight in base_weights(model).items())
    assert torch.equal(logits(model.unload()), logits(tiny("bert")))


# Files


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_base_weight_without_values_or_hash_is_refused_in_one_line(tmp_path):
    folded().save_pretrained(str(tmp_path))
    with torch.device("meta"):
        empty = type(tiny("bert"))(tiny("bert").config)
    message = r"^layer 'bert\.encoder.*': cannot subtract an initial update from a base weight without values$"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(empty, str(tmp_path))
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["resolved"]["base_hashes"].popitem()
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"^layer 'bert\.encoder.*': this is not the base model that the adapter was "):
        reload(tmp_path)
