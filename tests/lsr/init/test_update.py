import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr.init import update
from lsr.init.head import fitted_head
from lsr.init.update import HEAD_RATE, LARGEST_NORM, RATE, SCALING, examples_updates
from tests.lsr.init.test_head import (
    HEADS,
    QUERIES,
    batches,
    each_language_model,
    examples,
    in_use,
    made,
    state,
    values_of,
    wrapped,
)

each_model = pytest.mark.parametrize("name", [*HEADS, "llama-causal", "gpt2-causal"])


def given(name, *sizes):
    found = batches(*sizes)
    return [{**one, "labels": one["input_ids"]} for one in found] if name.endswith("causal") else found


def product(pair):
    left, right = pair
    return left @ right


def trained_by_peft(name, listed, rank, seed, head_steps, rising=0, share=1.0):
    """The update of a LoRA of PEFT, with the same start, after a step for each batch; rates rise for some steps."""
    model, _, head = made(name)
    config = LoraConfig(
        r=rank,
        lora_alpha=SCALING * rank,
        target_modules=[QUERIES[name]],
        modules_to_save=list(HEADS.get(name, [])),
        fan_in_fan_out=name.startswith("gpt2"),
        task_type="CAUSAL_LM" if name.endswith("causal") else "SEQ_CLS",
    )
    with fitted_head(model, head, listed, steps=head_steps, seed=seed):
        outer = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    (layer,) = (module for module in outer.modules() if hasattr(module, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    draws = torch.randn(rank, a.shape[1], generator=torch.Generator().manual_seed(seed)) / (3 * a.shape[1]) ** 0.5
    with torch.no_grad():
        a.copy_(draws)
    others = [p for p in outer.parameters() if p.requires_grad and p is not a and p is not b]
    groups = [{"params": [a, b], "lr": share * RATE}, {"params": others, "lr": share * HEAD_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    falling = len(listed) - rising
    shares = [*((step + 1) / rising for step in range(rising)), *(1 - step / falling for step in range(falling))]
    for now, batch in zip(shares, listed, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * now
        optimizer.zero_grad()
        outer(**batch).loss.backward()
        nn.utils.clip_grad_norm_([a, b, *others], LARGEST_NORM)
        optimizer.step()
    return (SCALING * b @ a).detach()


@each_model
@pytest.mark.parametrize("head_steps", [0, 5])
def test_it_is_the_update_of_a_lora_of_peft(name, head_steps):
    model, layers, head = made(name)
    listed = given(name, 2, 3, 1, 2)
    (found,) = examples_updates(model, layers, listed, head, steps=head_steps, rank=3, seed=5).values()
    expected = trained_by_peft(name, listed, 3, 5, head_steps)
    assert expected.norm() > 0
    assert_close(product(found), expected)


def failing(monkeypatch, *ends):
    """Have runs of a few steps be judged, as if each kept its loss at 1 but for its last quarter."""
    real, reported = update._run, iter(ends)

    def run(*args, **options):
        count = len(real(*args, **options))
        return [1.0] * (count - count // 4) + [next(reported)] * (count // 4)

    monkeypatch.setattr(update, "_run", run)
    monkeypatch.setattr(update, "JUDGED_STEPS", 20)


WARMER = "a warm-up, which led to {:.3f}"
SLOWER = f"{WARMER}, then with a warm-up and half the learning rates, which led to {{:.3f}}"
GENTLER = {  # by the ends of the runs: what is said of the repeated ones, and how the one that is used was made
    (0.96, 0.5): (f"{WARMER}: the second", {"rising": 2}),
    (0.96, 0.955, 0.5): (f"{SLOWER}: the third", {"rising": 2, "share": 0.5}),
    (0.97, 0.96, 0.965): (f"{SLOWER}: the second", {"rising": 2}),
}


@pytest.mark.parametrize("ends", GENTLER)
@pytest.mark.parametrize("name", HEADS)
def test_a_run_that_fails_is_repeated_more_gently(name, ends, monkeypatch):
    failing(monkeypatch, *ends)
    model, layers, head = made(name)
    listed = given(name, *[2] * 20)
    said, how = GENTLER[ends]
    message = f"the loss of the short training run only went from 1.000 to {{:.3f}}, so it was repeated with {said} run"
    with pytest.warns(UserWarning, match=f"^{re.escape(message.format(*ends))} is used$"):
        (found,) = examples_updates(model, layers, listed, head, steps=3, rank=3, seed=5).values()
    assert_close(product(found), trained_by_peft(name, listed, 3, 5, 3, **how))


def test_progress_goes_on_while_a_run_is_repeated(monkeypatch):
    failing(monkeypatch, 0.96, 0.96, 0.96)
    model, layers, head = made("bert")
    seen = []
    with pytest.warns(UserWarning, match="repeated"):
        examples_updates(
            model, layers, batches(*[2] * 20), head, steps=0, progress=lambda *numbers: seen.append(numbers)
        )
    assert seen == [(done, -(-done // 20) * 20) for done in range(1, 61)]


@pytest.mark.parametrize("ends", [(0.96, 0.96, 0.97), (0.96, 0.97, 0.96)])
def test_the_first_run_is_used_if_no_other_is_better(ends, monkeypatch):
    failing(monkeypatch, *ends)
    model, layers, head = made("bert")
    listed = batches(*[2] * 20)
    with pytest.warns(UserWarning, match=r": the first run is used$"):
        (found,) = examples_updates(model, layers, listed, head, rank=3, keep_head=True).values()
    other, its_layers, its_head = made("bert")
    monkeypatch.undo()
    (expected,) = examples_updates(other, its_layers, listed, its_head, rank=3, keep_head=True).values()
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(values_of(head), values_of(its_head), strict=True))


def test_the_first_run_is_used_if_the_others_diverge(monkeypatch):
    failing(monkeypatch, 0.96)
    first, runs = update._run, []

    def run(model, names, groups, *args, **options):
        runs.append(groups)
        if len(runs) == 1:
            return first(model, names, groups, *args, **options)
        groups[0].parameters[0].data.fill_(math.nan)
        raise ValueError("the loss is not finite")

    monkeypatch.setattr(update, "_run", run)
    model, layers, head = made("bert")
    listed = batches(*[2] * 20)
    diverged = r"with a warm-up, which diverged, then .*, which diverged: the first run is used$"
    with pytest.warns(UserWarning, match=diverged):
        (found,) = examples_updates(model, layers, listed, head, rank=3).values()
    monkeypatch.undo()
    other, its_layers, its_head = made("bert")
    (expected,) = examples_updates(other, its_layers, listed, its_head, rank=3).values()
    assert len(runs) == 3
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize(("steps", "end"), [(19, 1.0), (20, 0.95)])
def test_a_short_run_or_one_that_learns_is_not_repeated(steps, end, monkeypatch):
    failing(monkeypatch, end)  # a second run would find no end
    model, layers, head = made("bert")
    examples_updates(model, layers, batches(*[2] * steps), head)


@each_language_model
def test_a_run_without_a_head_is_not_repeated(name, monkeypatch):
    failing(monkeypatch, 1.0)  # a second run would find no end
    model, layers, _ = made(name)
    examples_updates(model, layers, given(name, *[2] * 20))


def test_a_repeated_run_leaves_the_model_as_it_was(monkeypatch):
    failing(monkeypatch, 0.96, 0.5)
    model, layers, head = in_use("bert")
    before = state(model)
    with pytest.warns(UserWarning, match="repeated"):
        examples_updates(model, layers, batches(*[2] * 20), head)
    assert state(model) == before


@each_model
def test_it_leaves_the_model_as_it_was(name):
    if name.endswith("causal"):
        model, layers, head = made(name)
        model(**given(name, 3)[0]).loss.backward()
    else:
        model, layers, head = in_use(name)
    before = state(model)
    examples_updates(model, layers, given(name, 2, 4), head)
    assert state(model) == before


@pytest.mark.parametrize("step", range(8))
def test_a_failure_leaves_the_model_as_it_was(step):
    """Of two passes of two batches, and two steps between them, one fails."""
    model, layers, head = in_use("bert")
    countdown = iter([False] * step + [True] + [False] * 9)

    def fail(*_):
        if next(countdown):
            raise KeyboardInterrupt

    model.classifier.register_forward_pre_hook(fail)
    before = state(model)
    try:
        examples_updates(model, layers, batches(2, 4), head, steps=2)
    except KeyboardInterrupt:
        assert step < 6
    else:
        assert step >= 6
    assert state(model) == before


def test_the_same_comes_back_with_the_same_bytes_and_the_seed_counts():
    model, layers, head = made("bert")
    one, two, other = (examples_updates(model, layers, batches(2, 4), head, seed=seed) for seed in (1, 1, 2))
    (one,), (two,), (other,) = one.values(), two.values(), other.values()
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("name", HEADS)
def test_layers_of_an_adapter_say_the_same_as_those_of_the_plain_model(name):
    found, expected = (examples_updates(*parts[:2], batches(2, 4), parts[2]) for parts in (wrapped(name), made(name)))
    for one, two in zip(found.values(), expected.values(), strict=True):
        assert_close(product(one), product(two))


def test_it_trains_in_float32_what_is_kept_in_bfloat16():
    """Steps of the head are smaller than what bfloat16 can tell apart; it comes back bit for bit all the same."""
    model, layers, head = made("bert")
    model.bfloat16()
    before = values_of(head)
    (found,) = examples_updates(model, layers, batches(2, 2, 2), head).values()
    assert all(torch.equal(one, two) for one, two in zip(values_of(head), before, strict=True))
    assert found[0].dtype is torch.float64
    assert product(found).norm() > 0
    precise, of_precise, its_head = made("bert")
    (expected,) = examples_updates(precise, of_precise, batches(2, 2, 2), its_head).values()
    assert torch.linalg.matrix_norm(product(found) - product(expected)) < 0.2 * torch.linalg.matrix_norm(
        product(expected)
    )


def test_progress_is_told_after_each_batch():
    model, layers, head = made("bert")
    told = []
    examples_updates(model, layers, iter(batches(1, 2, 3)), head, progress=lambda *counts: told.append(counts))
    assert told == [(done, 6) for done in range(1, 7)]
    told.clear()
    examples_updates(model, layers, batches(1, 2, 3), head, steps=0, progress=lambda *counts: told.append(counts))
    assert told == [(done, 3) for done in range(1, 4)]


def test_progress_of_a_repeated_run_is_told_as_more(monkeypatch):
    failing(monkeypatch, 0.96, 0.5)
    model, layers, head = made("bert")
    told = []
    with pytest.warns(UserWarning, match="repeated"):
        examples_updates(model, layers, batches(*[1] * 20), head, steps=0, progress=lambda *counts: told.append(counts))
    assert told == [(done, 20 if done <= 20 else 40) for done in range(1, 41)]


@each_language_model
def test_a_language_model_needs_no_head(name):
    model, layers, _ = made(name)
    (found,) = examples_updates(model, layers, given(name, 2, 2)).values()
    assert product(found).norm() > 0


def refused(listed, message, name="bert", **options):
    model, layers, head = made(name)
    with pytest.raises(ValueError, match=f"^{message}$"):
        examples_updates(model, layers, listed, head, **options)


def test_no_examples():
    refused([], "no examples: there are no batches to train on")
    refused([], "no examples: there are no batches to train on", "llama-causal")


def test_one_label_only():
    refused([examples(labels=torch.full((6,), 2))], "all 6 examples have the label 2: a head needs at least two")


def test_a_rate_that_ends_beyond_numbers():
    message = r"the loss is not finite in step 2 of 2 of the short training run at the learning rate inf"
    refused(batches(2, 4), message, rate=float("inf"))


def test_a_layer_that_is_never_called():
    model, _, head = made("bert")
    stray = nn.Linear(24, 24, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^layer 'stray' was never called, or the loss does not depend on it$"):
        examples_updates(model, {"stray": stray}, batches(2, 4), head)
