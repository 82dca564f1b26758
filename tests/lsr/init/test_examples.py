"""What is read from examples: gradients, through a head that is fitted as by AdamW on the whole model, and updates.

An update is that of a LoRA of PEFT, and a warm start goes on from it. In any case, the model stays as it was.
"""

import math
from statistics import fmean

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr import initialize_from_data
from lsr.init.examples import HEAD_RATE, LARGEST_NORM, RATE, SCALING, examples_gradients, examples_updates
from lsr.init.passes import fit_head
from lsr.tuner.layer import find_lsr_layers
from tests.kit import refused
from tests.lsr.init.models import HEADS, LAYERS, Titles, batches, examples, in_use, made, state, values_of, wrapped
from tests.old_tiny.models import logits, tiny, tokens
from tests.old_tiny.subjects import DENSE, Subject

each_model = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_gradient_is_that_of_the_mean_loss_over_examples_however_they_are_cut(name):
    model, layers, _ = made(name)
    whole, parts = (examples_gradients(model, layers, cut) for cut in (batches(6), batches(3, 1, 2)))
    (layer,) = layers.values()
    model(**examples()).loss.backward()
    expected = layer.weight.grad if isinstance(layer, nn.Linear) else layer.weight.grad.T
    for actual in (*whole.values(), *parts.values()):
        assert_close(actual, expected)
        assert (actual.dtype, actual.device.type) == (torch.float64, "cpu")


@each_model
def test_gradients_are_those_through_the_fitted_head_in_a_peft_wrapper_too(name):
    model, layers, head = made(name)
    listed = batches(2, 4, name=name)
    titles = Titles()
    actual = examples_gradients(model, layers, iter(listed), head, steps=20, seed=4, track=titles)
    assert titles.passes == [*([("fit the head", 20)] if head else []), ("gradients", 2)]
    with fit_head(model, head, listed, steps=20, seed=4):
        expected = examples_gradients(model, layers, listed)
    assert_close(actual, expected, rtol=0, atol=0)
    if head:
        fresh = examples_gradients(model, layers, listed)
        assert not torch.allclose(actual[LAYERS[name]], fresh[LAYERS[name]])
        outer, its_layers, wrappers = wrapped(name)
        assert_close(examples_gradients(outer, its_layers, listed, wrappers, steps=20, seed=4), expected)


@pytest.mark.parametrize("name", ["bert", "llama-causal"])
def test_a_measurement_leaves_the_model_as_it_was_and_takes_no_dropout(name):
    model, layers, head = in_use(name)
    before = state(model)
    one, two = (examples_gradients(model, layers, batches(2, 4, name=name), head, steps=3) for _ in range(2))
    assert state(model) == before
    plain, its_layers, its_head = made(name)
    expected = examples_gradients(plain, its_layers, batches(2, 4, name=name), its_head, steps=3)
    assert all(torch.equal(one[key], two[key]) and torch.equal(one[key], expected[key]) for key in layers)


each_head = pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head])


def fitted_values(model, head, given, **options):
    with fit_head(model, head, given, **options):
        return values_of(head)


def fitted_in_full(model, head, batch, steps, rate=0.01):
    """The head after as many steps of AdamW on the same batch."""
    model.requires_grad_(False)
    parameters = [parameter.requires_grad_(True) for module in head for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return values_of(head)


@each_head
def test_a_head_is_fitted_as_by_steps_through_the_whole_model(name):
    model, _, head = made(name)
    before = model(**examples()).loss.item()
    with fit_head(model, head, [examples()], steps=60):
        assert model(**examples()).loss.item() < before - 0.1
    assert_close(fitted_values(model, head, [examples()], steps=5), fitted_in_full(model, head, examples(), steps=5))


def test_a_head_is_fitted_to_all_batches_over_and_over_each_time_in_another_order():
    model, _, head = made("bert")
    listed = batches(1, 1, 1, 1, 1, 1)
    places = {id(batch): place for place, batch in enumerate(listed)}
    steps = []

    def track(items, title):
        steps.extend(places[id(batch)] for batch in items)
        return items

    with fit_head(model, head, listed, steps=18, track=track):
        pass
    rounds = {tuple(steps[first : first + 6]) for first in (0, 6, 12)}
    assert len(rounds) == 3
    assert all(sorted(order) == [*range(6)] for order in rounds)


@pytest.mark.parametrize("name", ["llama-causal", "gpt2-causal"])
def test_the_head_of_a_language_model_is_fitted_if_asked_unless_it_is_tied(name):
    model = tiny(name).double()
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    batch = {**tokens(), "labels": tokens()["input_ids"]}
    (before,) = values_of([model.lm_head])
    (actual,) = fitted_values(model, [model.lm_head], [batch], steps=3)
    assert is_tied == (name == "gpt2-causal") == torch.equal(actual, before)
    if not is_tied:
        assert_close([actual], fitted_in_full(model, [model.lm_head], batch, steps=3))


OF_ONE = [examples(labels=torch.full((6,), 2))] * 2
MISFITS = [  # a head, examples, and what is said
    ("none", [tokens()], "the model returned no loss: batches need labels, but these have input_ids, attention_mask"),
    ("own", [], "no examples: there are no batches"),
    ("own", [examples(), tokens()], "the model returned no loss: batches need labels, but these have input_ids"),
    ("own", OF_ONE, "all 12 examples have the label 2: a head needs at least two"),
    ("another", [examples()], "the loss does not depend on the head: is this the head that the model cal"),
]


@pytest.mark.parametrize(("which", "listed", "message"), MISFITS)
def test_a_head_and_examples_that_do_not_fit_are_refused(which, listed, message):
    model, layers, own = made("bert")
    head = {"none": [], "own": own, "another": [nn.Linear(24, 3)]}[which]
    refused(examples_gradients, model, layers, listed, head, kind=ValueError, says=message)


def product(pair):
    left, right = pair
    return left @ right


def trained_by_peft(name, listed, head_steps, rising=0, share=1.0):
    """The update of a LoRA of PEFT, with the same start, after a step for each batch, and its last losses' mean.

    Rates rise for some steps.
    """
    model, _, head = made(name)
    config = LoraConfig(
        r=3,
        lora_alpha=SCALING * 3,
        target_modules=[LAYERS[name]],
        modules_to_save=list(HEADS[name]),
        fan_in_fan_out=name.startswith("gpt2"),
        task_type="CAUSAL_LM" if name.endswith("causal") else "SEQ_CLS",
    )
    with fit_head(model, head, listed, steps=head_steps, seed=5):
        outer = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    (layer,) = (module for module in outer.modules() if hasattr(module, "lora_A"))
    a = layer.lora_A["default"].weight
    b = layer.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(torch.randn(3, a.shape[1], generator=torch.Generator().manual_seed(5)) / (3 * a.shape[1]) ** 0.5)
    others = [p for p in outer.parameters() if p.requires_grad and p is not a and p is not b]
    groups = [{"params": [a, b], "lr": share * RATE}, {"params": others, "lr": share * HEAD_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    falling = len(listed) - rising
    shares = [*((step + 1) / rising for step in range(rising)), *(1 - step / falling for step in range(falling))]
    losses = []
    for now, batch in zip(shares, listed, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * now
        optimizer.zero_grad()
        loss = outer(**batch).loss
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_([a, b, *others], LARGEST_NORM)
        optimizer.step()
    return (SCALING * b @ a).detach(), fmean(losses[-(len(losses) // 4) :])


@each_model
def test_it_is_the_update_of_a_lora_of_peft_in_a_peft_wrapper_too(name):
    model, layers, head = made(name)
    listed = batches(2, 3, 1, 2, name=name)
    titles = Titles()
    (actual,) = examples_updates(model, layers, iter(listed), head, steps=5, rank=3, seed=5, track=titles).values()
    expected, _ = trained_by_peft(name, listed, 5)
    assert expected.norm() > 0
    assert_close(product(actual), expected)
    assert titles.passes == [*([("fit the head", 5)] if head else []), ("short training run", 4)]
    if head:
        outer, its_layers, wrappers = wrapped(name)
        (inside,) = examples_updates(outer, its_layers, listed, wrappers, steps=5, rank=3, seed=5).values()
        assert_close(product(inside), expected)


def test_a_run_that_fails_is_repeated_more_gently_and_the_lowest_is_used(monkeypatch):
    monkeypatch.setattr("lsr.init.examples.JUDGED_STEPS", 20)
    monkeypatch.setattr("lsr.init.examples.FAILED", 0)  # every run has
    listed = batches(*[2] * 20)
    titles = Titles()
    runs = [trained_by_peft("bert", listed, 3, *how) for how in ((), (2,), (2, 0.5))]
    used = min(range(3), key=lambda run: runs[run][1])
    said = f"run {used + 1} of 3 is used, which led to {runs[used][1]:.3f}"
    model, layers, head = in_use("bert")
    before = state(model)
    with pytest.warns(UserWarning, match=f"a warm-up and then with lower learning rates: {said}$") as caught:
        (actual,) = examples_updates(model, layers, listed, head, steps=3, rank=3, seed=5, track=titles).values()
    assert caught[0].filename == __file__
    assert titles.passes == [("fit the head", 3), *[("short training run", 20)] * 3]
    assert state(model) == before
    assert_close(product(actual), runs[used][0])


@pytest.mark.parametrize("name", ["bert", "llama-causal"])
def test_it_leaves_the_model_as_it_was_and_the_seed_decides(name):
    model, layers, head = in_use(name)
    before = state(model)
    listed = batches(2, 4, name=name)
    updates = [examples_updates(model, layers, listed, head, steps=3, seed=seed) for seed in (1, 1, 2)]
    one, two, other = (update[LAYERS[name]] for update in updates)
    assert state(model) == before
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(("step", "keep_head"), [(1, True), (3, False)])
def test_a_failure_leaves_the_model_as_it_was(step, keep_head):
    """Two steps of the head and two of the run; one of them fails."""
    model, layers, head = in_use("bert")
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        examples_updates(model, layers, batches(2, 4), head, steps=2, keep_head=keep_head, track=Titles(failing=step))
    assert state(model) == before


def test_a_run_that_ends_in_no_number_is_refused(monkeypatch):
    monkeypatch.setattr("lsr.init.examples.RATE", math.inf)
    model, layers, head = made("bert")
    message = "short training run: the loss is not finite in step 2 of 2 at the learning rate inf"
    assert refused(examples_updates, model, layers, batches(2, 4), head, kind=ValueError) == message


@pytest.mark.parametrize(
    ("name", "share", "train", "core"),
    [
        ("bert", "none", "factors", "full"),
        ("bert", "none", "core", "diagonal"),
        ("bert", "layers", "core", "full"),
        ("llama-causal", "layers", "core", "full"),
    ],
)
def test_a_model_of_enough_rank_goes_on_from_where_the_short_run_ended(name, share, train, core):
    """Its update is added to the weights, and the head is as trained; a language model's stays as it is."""
    fields = {
        "rank_shape": (24,),
        "share": share,
        "train": train,
        "core": core,
        "init_weights": "warm_start",
        "alpha": 5,
    }
    fields["target_modules"] = ["q_proj"] if name == "llama-causal" else None  # its values are narrower than the rank
    config = Subject(name, {**DENSE, **fields}).config()
    model = get_peft_model(tiny(name), config).eval()
    listed = batches(2, 2, 2, name=name)
    initialize_from_data(model, listed, head_steps=3, seed=3)
    expected = tiny(name)
    layers = {layer: expected.get_submodule(layer) for layer in find_lsr_layers(model)}
    head = [expected.get_submodule(part) for part in HEADS[name]]
    updates = examples_updates(expected, layers, listed, head, steps=3, seed=3, keep_head=True)
    with torch.no_grad():
        for layer, (left, right) in updates.items():
            layers[layer].weight += (left @ right).float()
    assert not torch.allclose(logits(expected), logits(tiny(name)), atol=1e-3)
    assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)


def test_directions_beyond_the_rank_of_the_short_run_are_trained_too():
    """If a column of B and a row of A were both zero, none of them would get a gradient."""
    fields = {"rank_shape": (24,), "init_weights": "warm_start", "separation_rank": 1}
    model = get_peft_model(tiny("bert"), Subject("bert", fields).config())
    listed = batches(2, 2, 2)
    initialize_from_data(model, listed, head_steps=3, seed=3)
    layer = next(iter(find_lsr_layers(model).values()))
    a, b = layer.adapter("default").matrices()
    assert not b[:, 16:].any()  # the rank of the short run is 16
    assert_close(a[16:].norm(dim=1), torch.full((8,), 3**-0.5), atol=1e-5, rtol=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(**listed[0]).loss.backward()
    optimizer.step()
    _, b = layer.adapter("default").matrices()
    assert (b[:, 16:].norm(dim=0) > 1e-3).all()
