import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from lsr import LsrConfig
from lsr.init.examples import weight_gradients
from lsr.init.features import backbone_of
from lsr.init.head import examples_gradients, fitted_head
from tests.capabilities.models import CONFIGS, LABELS, tiny, tokens

HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],  # of two layers inside
    "distilbert": ["pre_classifier", "classifier"],
    "gpt2": ["score"],
}
QUERIES = {
    "bert": "bert.encoder.layer.1.attention.self.query",
    "roberta": "roberta.encoder.layer.1.attention.self.query",
    "distilbert": "distilbert.transformer.layer.1.attention.q_lin",
    "gpt2": "transformer.h.1.attn.c_attn",
    "llama-causal": "model.layers.1.self_attn.q_proj",
    "gpt2-causal": "transformer.h.1.attn.c_attn",
}
each_model = pytest.mark.parametrize("name", HEADS)
each_language_model = pytest.mark.parametrize("name", ["llama-causal", "gpt2-causal"])


def examples(rows=6, **changed):
    return {**tokens(rows), "labels": torch.arange(rows) % LABELS, **changed}


def batches(*sizes):
    whole = examples(sum(sizes))
    parts = {name: value.split(list(sizes)) for name, value in whole.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(len(sizes))]


def made(name):
    """A model in float64, what is to be looked at and its head."""
    model = tiny(name).double()
    return model, layers_of(model, name), [model.get_submodule(head) for head in HEADS.get(name, [])]


def layers_of(model, name):
    return {QUERIES[name]: model.get_submodule(QUERIES[name])}


def wrapped(name):
    """The same in a PEFT wrapper, with dropout in the adapter."""
    config = LsrConfig(
        task_type="SEQ_CLS",
        rank_shape=(2, 2),
        separation_rank=2,
        target_modules=[QUERIES[name]],
        modules_to_save=list(HEADS[name]),  # PEFT appends to it
        dropout=0.5,
        seed=0,
    )
    model = get_peft_model(tiny(name).double(), config, autocast_adapter_dtype=False)
    layers = {QUERIES[name]: model.get_base_model().get_submodule(QUERIES[name]).get_base_layer()}
    return model, layers, [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def values_of(head):
    return [parameter.detach().clone() for module in head for parameter in module.parameters()]


def fitted_values(model, head, given, **options):
    with fitted_head(model, head, given, **options):
        return values_of(head)


def fitted_in_full(model, head, batch, steps, rate):
    """The head after as many steps through the whole model, which keeps nothing between them."""
    model.requires_grad_(False)
    parameters = [parameter.requires_grad_(True) for module in head for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return values_of(head)


def assert_all_close(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two)


# The fit


@each_model
def test_a_head_is_fitted_as_by_steps_through_the_whole_model(name):
    model, _, head = made(name)
    found = fitted_values(model, head, [examples()], steps=5, rate=0.02)
    assert_all_close(found, fitted_in_full(model, head, examples(), steps=5, rate=0.02))


@each_model
def test_a_head_in_a_peft_wrapper_is_fitted_as_the_plain_one(name):
    model, _, head = made(name)
    expected = fitted_values(model, head, batches(2, 4))
    outer, _, wrappers = wrapped(name)
    with fitted_head(outer, wrappers, batches(2, 4)):
        found = values_of([wrapper.modules_to_save["default"] for wrapper in wrappers])
        for wrapper, module in zip(wrappers, head, strict=True):  # which is not what is trained
            assert_close(list(wrapper.original_module.parameters()), list(module.parameters()), rtol=0, atol=0)
    assert_all_close(found, expected)


@each_model
def test_a_fitted_head_has_a_far_lower_loss(name):
    model, _, head = made(name)
    model.requires_grad_(False)
    before = float(model(**examples()).loss)
    with fitted_head(model, head, batches(2, 4)):
        assert float(model(**examples()).loss) < before - 0.1


def regression(rows=6):
    return {**tokens(rows), "labels": torch.linspace(-1, 1, rows, dtype=torch.float64)}


def pair(rows=6):
    """Two texts in one, as tokenizers say it."""
    return examples(rows, token_type_ids=(torch.arange(9) > 4).long().repeat(rows, 1))


@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_head_of_one_number_is_fitted_to_numbers(problem):
    config = copy.deepcopy(CONFIGS["bert"])
    config.num_labels, config.problem_type = 1, problem
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    found = fitted_values(model, [model.classifier], [regression()], steps=5)
    assert_all_close(found, fitted_in_full(model, [model.classifier], regression(), steps=5, rate=0.01))


def test_a_head_is_fitted_to_pairs_of_texts():
    model, _, head = made("bert")
    found = fitted_values(model, head, [pair()], steps=5)
    assert_all_close(found, fitted_in_full(model, head, pair(), steps=5, rate=0.01))


def test_what_the_head_shares_with_the_backbone_is_not_fitted():
    model, _, head = made("bert")
    pooler = model.bert.pooler.dense.weight.clone()
    with fitted_head(model, [model.bert.pooler, *head], [examples()]):
        assert torch.equal(model.bert.pooler.dense.weight, pooler)


def test_dropout_takes_no_part():
    model, _, head = made("bert")
    expected = fitted_values(model, head, batches(2, 4))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    found = fitted_values(model.train(), head, batches(2, 4))
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_steps_in_half_precision_are_not_lost_to_rounding():
    """Of 1, bfloat16 keeps steps of 0.004 or more."""
    model = tiny("bert").bfloat16()
    model.classifier.weight.data.fill_(1)
    with fitted_head(model, [model.classifier], [examples()], rate=0.001):
        assert model.classifier.weight.dtype == torch.bfloat16
        assert (model.classifier.weight != 1).any()


def labels_seen(model, head, given, **options):
    """The labels of each pass of the model, one for the backbone and one for each step."""
    seen = []
    model.register_forward_pre_hook(
        lambda _, __, fields: seen.append(tuple(fields["labels"].tolist())), with_kwargs=True
    )
    fitted_values(model, head, given, **options)
    return seen


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_each_round_of_steps_takes_each_batch_once(seed, count):
    model, _, head = made("bert")
    given_batches = [examples(2, labels=torch.tensor([i % LABELS, i // LABELS])) for i in range(count)]
    seen = labels_seen(model, head, given_batches, steps=3 * count, seed=seed)
    expected = {tuple(batch["labels"].tolist()) for batch in given_batches}
    assert len(seen) == 4 * count
    assert all(set(seen[start : start + count]) == expected for start in range(0, 4 * count, count))


def test_the_seed_draws_the_order():
    model, _, head = made("bert")
    fits = [fitted_values(model, head, batches(1, 2, 3, 4), seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_without_steps_the_head_is_the_fresh_one():
    model, layers, head = made("bert")
    assert labels_seen(model, head, batches(2, 4), steps=0) == []
    found = examples_gradients(model, layers, batches(2, 4), head, steps=0)
    assert_close(found, weight_gradients(model, layers, batches(2, 4)), rtol=0, atol=0)


# The cost


def calls_of(module):
    calls = Counter()
    module.register_forward_pre_hook(lambda *_: calls.update(["forward"]))
    module.weight.register_post_accumulate_grad_hook(lambda _: calls.update(["backward"]))
    return calls


@each_model
def test_examples_pass_the_model_twice_forward_and_once_backward(name):
    model, layers, head = made(name)
    calls = calls_of(layers[QUERIES[name]])
    examples_gradients(model, layers, batches(1, 2, 3), head, steps=7)
    assert calls == {"forward": 2 * 3, "backward": 3}


@pytest.mark.parametrize("steps", [1, 3])
def test_fewer_steps_than_batches_pass_only_what_they_read(steps):
    model, _, head = made("bert")
    given = [examples(2, labels=torch.tensor([i % LABELS, i // LABELS])) for i in range(5)]
    calls = calls_of(model.bert.encoder.layer[0].attention.self.query)
    told = []
    seen = labels_seen(model, head, given, steps=steps, progress=told.append)
    assert calls["forward"] == steps
    assert told == list(range(1, steps + 1))
    assert sorted(seen[:steps]) == sorted(seen[steps:])  # in the pass, and in the steps
    assert len(set(seen)) == steps


@pytest.mark.parametrize("budget", [0, 2])
def test_beyond_the_budget_fewer_examples_fit_the_head(budget):
    """Batches of two texts; the backbone gives nine tokens and a pooled one, 24 numbers each."""
    model, _, head = made("bert")
    size = 2 * (9 + 1) * 24 * 8
    given = batches(2, 2, 2, 2)
    calls = calls_of(model.bert.encoder.layer[0].attention.self.query)
    seen = labels_seen(model, head, given, cache_bytes=budget * size, steps=8)
    kept = max(budget, 1)
    assert calls["forward"] == kept + 1  # the last one found that it is too much
    assert Counter(seen[kept + 1 :]) == dict.fromkeys(seen[:kept], 8 / kept)


def test_progress_counts_both_passes():
    model, layers, head = made("bert")
    told = []
    examples_gradients(model, layers, iter(batches(1, 2, 3)), head, progress=lambda *counts: told.append(counts))
    assert told == [(done, 6) for done in range(1, 7)]
    told.clear()
    examples_gradients(model, layers, batches(1, 2, 3), head, steps=2, progress=lambda *counts: told.append(counts))
    assert told == [(done, 5) for done in range(1, 6)]


# Gradients


@each_model
def test_gradients_are_those_through_the_fitted_head(name):
    model, layers, head = made(name)
    found = examples_gradients(model, layers, batches(2, 4), head, steps=20, rate=0.02, seed=4)
    values = fitted_values(model, head, batches(2, 4), steps=20, rate=0.02, seed=4)
    for parameter, value in zip([p for module in head for p in module.parameters()], values, strict=True):
        parameter.data = value
    expected = weight_gradients(model, layers, batches(2, 4))
    assert_close(found, expected)
    fresh = weight_gradients(*made(name)[:2], batches(2, 4))
    assert not torch.allclose(found[QUERIES[name]], fresh[QUERIES[name]])


@each_model
def test_gradients_in_a_peft_wrapper_are_the_same(name):
    found, expected = (examples_gradients(*parts[:2], batches(2, 4), parts[2]) for parts in (wrapped(name), made(name)))
    assert_close(found, expected)


def test_gradients_of_large_layers_are_pairs():
    parts = made("bert")
    dense, pairs = (
        examples_gradients(*parts[:2], batches(2, 4), parts[2], dense_entries=entries, rank=12) for entries in (576, 0)
    )
    left, right = pairs[QUERIES["bert"]]
    assert_close(left @ right, dense[QUERIES["bert"]], rtol=1e-6, atol=1e-9)


@each_model
def test_two_runs_give_the_same_bytes(name):
    def run():
        model = tiny(name)
        head = [model.get_submodule(part) for part in HEADS[name]]
        (found,) = examples_gradients(model, layers_of(model, name), batches(2, 4), head).values()
        torch.rand(1)  # the next run starts from other random numbers
        return found.numpy().tobytes()

    assert run() == run()


@each_language_model
def test_a_language_model_is_looked_at_through_the_head_it_has(name):
    model, layers, _ = made(name)
    batch = {**tokens(), "labels": tokens()["input_ids"]}
    told = []
    found = examples_gradients(model, layers, [batch, batch], progress=lambda *counts: told.append(counts))
    assert_close(found, weight_gradients(model, layers, [batch, batch]), rtol=0, atol=0)
    assert told == [(1, 2), (2, 2)]


@each_language_model
def test_the_head_of_a_language_model_is_fitted_if_asked_unless_it_is_tied(name):
    model, _, _ = made(name)
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    batch = {**tokens(), "labels": tokens()["input_ids"]}
    before = model.lm_head.weight.clone()
    with fitted_head(model, [model.lm_head], [batch], steps=3):
        assert torch.equal(model.lm_head.weight, before) == is_tied
        found = model.lm_head.weight.clone()
    if not is_tied:
        assert_all_close([found], fitted_in_full(model, [model.lm_head], batch, steps=3, rate=0.01))


@pytest.mark.parametrize("name", QUERIES)
def test_the_backbone_is_the_model_without_its_head_in_a_peft_wrapper_too(name):
    model = tiny(name)
    backbone = getattr(model, QUERIES[name].split(".")[0])
    config = LsrConfig(rank_shape=(2, 2), separation_rank=2, target_modules=[QUERIES[name]], seed=0)
    assert backbone_of(model) is backbone
    assert backbone_of(get_peft_model(model, config)) is backbone


class Twice(nn.Module):
    """A model that is not of transformers: its backbone reads two inputs in two calls and returns what `wrap` makes."""

    base_model_prefix = "body"

    def __init__(self, wrap=lambda x: {"features": x}, read=lambda x: x["features"]):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = Body(wrap).double(), nn.Linear(6, 2).double()
        self.read = read

    def forward(self, x, y, labels=None):
        together = torch.cat([self.read(self.body(x)), self.read(self.body(y))], dim=1)
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.head(together), labels))


class Body(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 3), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


def two_inputs():
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 4, 3, dtype=torch.float64, generator=draws)
    return {"x": x, "y": y, "labels": torch.tensor([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("wrap", "read"),
    [
        (lambda x: {"features": x, "cache": object()}, lambda x: x["features"]),
        (lambda x: (None, [x]), lambda x: x[1][0]),
        (lambda x: x, lambda x: x),
    ],
    ids=["mapping", "tuple", "tensor"],
)
def test_any_model_that_names_its_backbone_may_call_it_more_than_once(wrap, read):
    model = Twice(wrap, read)
    found = fitted_values(model, [model.head], [two_inputs()], steps=5)
    assert_all_close(found, fitted_in_full(model, [model.head], two_inputs(), steps=5, rate=0.01))


def test_a_forward_of_the_backbone_itself_stays():
    """Libraries that move models between devices replace it so."""
    model = Twice()
    forward = model.body.forward
    model.body.forward = lambda x: forward(2 * x)
    replaced = model.body.forward
    found = fitted_values(model, [model.head], [two_inputs()], steps=5)
    assert model.body.forward is replaced
    assert_all_close(found, fitted_in_full(model, [model.head], two_inputs(), steps=5, rate=0.01))


# What a fit leaves alone


def in_use(name):
    """A model in training mode, with dropout, gradients, and a frozen weight."""
    model, layers, head = made(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model(**examples()).loss.backward()
    next(iter(layers.values())).weight.requires_grad_(False)
    model.train()
    return model, layers, head


def state(model):
    """Everything that a fit might leave changed. Tensors are named by identity and by value."""
    return (
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        [sorted(module.__dict__) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [(id(parameter.grad), parameter.grad.numpy().tobytes()) for parameter in model.parameters()],
        [(id(parameter), parameter.detach().numpy().tobytes()) for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
    )


@each_model
def test_a_fit_leaves_the_model_as_it_was(name):
    model, layers, head = in_use(name)
    before = state(model)
    examples_gradients(model, layers, batches(2, 4), head)
    assert state(model) == before


def test_within_a_fit_the_head_alone_is_another():
    model, _, head = in_use("bert")
    *before, values, numbers = state(model)
    with fitted_head(model, head, batches(2, 4)):
        *within, changed, same_numbers = state(model)
    assert (within, same_numbers) == (before, numbers)
    names = [name for name, _ in model.named_parameters()]
    different = {name for name, one, two in zip(names, values, changed, strict=True) if one != two}
    assert different == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("step", range(6))
def test_a_failure_leaves_the_model_as_it_was(step):
    """Of two passes of two batches, and two steps between them, one fails."""
    model, layers, head = in_use("bert")
    countdown = iter([False] * step + [True])

    def fail(*_):
        if next(countdown):
            raise KeyboardInterrupt

    hook = model.classifier.register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        examples_gradients(model, layers, batches(2, 4), head, steps=2)
    assert state(model) == before
    hook.remove()


# Errors


def refused(given, message, **options):
    model, layers, head = made("bert")
    with pytest.raises(ValueError, match=f"^{message}$"):
        examples_gradients(model, layers, given, head, **options)


def test_no_examples():
    refused([], "no examples: there are no batches to fit a head to")


def test_no_labels():
    has = "batch 2 has no labels to fit a head to: it has input_ids, attention_mask"
    refused([examples(), tokens()], f"{has}; with head_steps=0 no head is fitted")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_labels_that_are_not_finite(value):
    labels = regression()["labels"]
    labels[2] = value
    refused([{**regression(), "labels": labels}], "batch 1 has labels that are not finite")


@pytest.mark.parametrize("labels", [[2] * 6, [0.5] * 6], ids=["class", "number"])
def test_one_label_only(labels):
    given = examples(labels=torch.tensor(labels))
    refused([given, given], rf"all 12 examples have the label {labels[0]}: a head needs at least two")


def test_one_vector_of_labels_only():
    given = examples(labels=torch.tensor([[1.0, 0.0, 1.0]] * 6))
    refused([given], r"all 6 examples have the label \[1.0, 0.0, 1.0\]: a head needs at least two")


def test_features_that_are_not_finite():
    model, layers, head = made("bert")
    model.bert.pooler.dense.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"^the outputs of the backbone BertModel for these examples are not finite$"):
        examples_gradients(model, layers, [examples()], head)


def test_a_rate_that_ends_beyond_numbers():
    message = "the loss is not finite in step 2 of 60 of the head at the learning rate inf"
    refused([examples()], message, rate=float("inf"))


def test_a_model_without_a_backbone():
    model = Twice().body
    with pytest.raises(ValueError, match=r"^Body has no backbone: the base_model_prefix of its class names no module$"):
        examples_gradients(model, {"it": model.layer}, [two_inputs()], [model.layer])


def test_a_backbone_that_is_never_called():
    class Alone(Twice):
        def forward(self, x, y, labels):
            return SimpleNamespace(loss=nn.functional.cross_entropy(self.head(torch.cat([x, y], dim=1)), labels))

    model = Alone()
    with pytest.raises(ValueError, match=r"^the backbone Body is never called by Alone$"):
        examples_gradients(model, {"it": model.body.layer}, [two_inputs()], [model.head])


def test_a_backbone_whose_output_cannot_be_kept():
    model = Twice(lambda x: SimpleNamespace(x=x), lambda x: x.x)
    with pytest.raises(ValueError, match=r"^the backbone Body returns no tensors, nor a tuple or mapping of them$"):
        examples_gradients(model, {"it": model.body.layer}, [two_inputs()], [model.head])


def test_a_head_that_is_not_the_models():
    model, layers, _ = made("bert")
    with pytest.raises(
        ValueError, match=r"^the loss does not depend on the head: is this the head that the model calls"
    ):
        examples_gradients(model, layers, [examples()], [nn.Linear(24, 3)])
