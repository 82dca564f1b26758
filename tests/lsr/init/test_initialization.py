"""What holds of every initialization: what it reads and returns, and that the same source gives the same bytes.

Factors that are initialized after the model was made are those that `get_peft_model` gives.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model, inject_adapter_in_model
from peft.utils import ModulesToSaveWrapper
from torch.testing import assert_close

from lsr import LsrConfig, initialize_from_data
from lsr.algebra.separable import FactorShapes, kron_sum, split_width
from lsr.algebra.spectrum import leading_bases
from lsr.init import INITIALIZATIONS
from lsr.init.allocation import allocate
from lsr.init.context import InitContext
from lsr.init.directions import singular_factors
from lsr.init.examples import examples_gradients
from lsr.init.random_factors import fresh_core, random_factors
from lsr.tuner.initialize import initialize_factors
from lsr.tuner.layer import find_lsr_layers
from lsr.tuner.lookup import groups_of
from tests.kit import refused
from tests.lsr.layers import decaying, normal
from tests.old_tiny.models import LABELS, logits, tiny, tokens
from tests.old_tiny.subjects import Subject

each_word = pytest.mark.parametrize("word", INITIALIZATIONS)
WIDTHS = (20, 26)  # 26 is padded to 27 or more


def form_of(rows, columns, rank_shape=(2, 2), terms=1, in_shape=None):
    in_shape = in_shape or split_width(columns, rank_shape)
    return FactorShapes(rank_shape, in_shape, split_width(rows, rank_shape), terms, columns, rows)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def as_bytes(start):
    """All factors of a start, to compare two of them."""
    return [factor.detach().numpy().tobytes() for factor in (*start.a, *start.b)]


def source_for(word, rank_shape=(2, 2)):
    """Only what the initialization says that it reads."""
    reads = INITIALIZATIONS[word].reads
    matrix = decaying(*WIDTHS)
    return InitContext(
        form_of(*WIDTHS, rank_shape, 3 if len(rank_shape) > 1 else 1),
        (lambda: matrix) if reads != "seed" else lambda: pytest.fail("the weight was read"),
        scaling=0.7,
        seed=3,
        generator=generator(5),
    )


def start_of(word, *arguments):
    return INITIALIZATIONS[word].factors(source_for(word, *arguments))


@pytest.mark.parametrize(("word", "rank_shape"), [*((word, (2, 2)) for word in INITIALIZATIONS), ("random", (4,))])
def test_it_reads_what_it_says_and_returns_finite_factors_of_the_form(word, rank_shape):
    form = source_for(word, rank_shape).form
    before = torch.get_rng_state()
    start = start_of(word, rank_shape)
    terms = form.separation_rank
    shapes_a = [(terms, r, n) for r, n in zip(rank_shape, form.in_shape, strict=True)]
    shapes_b = [(terms, m, r) for r, m in zip(rank_shape, form.out_shape, strict=True)]
    assert [tuple(factor.shape) for factor in (*start.a, *start.b)] == [*shapes_a, *shapes_b]
    assert all(torch.isfinite(factor).all() and not factor.requires_grad for factor in (*start.a, *start.b))
    assert as_bytes(start) == as_bytes(start_of(word, rank_shape))
    assert torch.equal(torch.get_rng_state(), before)  # with a generator of its own
    assert bool(start.b[0].any()) == (INITIALIZATIONS[word].core is not fresh_core)
    assert all(factor.any() for factor in (*start.a, *start.b[1:]))


@each_word
def test_with_one_factor_a_side_it_spans_singular_vectors_and_what_it_begins_with_is_a_singular_part(word):
    start = start_of(word, (4,))
    matrix = decaying(*WIDTHS)
    (a,), (b,) = start.a, start.b
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    if INITIALIZATIONS[word].core is not fresh_core:
        assert_close(0.7 * b[0] @ a[0], u[:, :4] * values[:4] @ vt[:4], atol=1e-8, rtol=0)
    elif word != "random":
        assert_close(a[0] @ a[0].T, torch.eye(4, dtype=torch.float64) / 3, atol=1e-6, rtol=0)
        assert_close(3 * a[0].T @ a[0], vt[:4].T @ vt[:4], atol=1e-6, rtol=0)


def test_random_bases_around_a_core_are_orthonormal():
    start = INITIALIZATIONS["random"].bases([source_for("random", (4,))])
    for rows in (start.a[0][0], start.b[0][0].T):
        assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, torch.nan])
@pytest.mark.parametrize("word", [word for word in INITIALIZATIONS if word != "random"])
def test_a_matrix_without_directions_is_refused(word, value):
    broken = torch.full(WIDTHS, value)
    source = replace(source_for(word), matrix=lambda: broken)
    message = f"^the weight, or its gradient or update over the examples, is {'zero' if value == 0 else 'not finite'}"
    with pytest.raises(ValueError, match=message):
        INITIALIZATIONS[word].factors(source)
    with pytest.raises(ValueError, match=message):
        INITIALIZATIONS[word].bases([replace(source, form=form_of(*WIDTHS, (4,)))])


def test_a_gradient_gives_a_the_norm_that_lora_expects_and_more_of_the_gradient_than_a_random_one():
    source = source_for("gradient")
    start = start_of("gradient")
    gradient = source.matrix()
    a = kron_sum(*start.a)[:, : WIDTHS[1]]
    assert float(a.square().sum()) == pytest.approx(source.form.rank / 3)
    for others in (start.a[1:], start.b[1:]):
        assert float(others[0].square().mean().sqrt()) == pytest.approx(3**-0.5)
    drawn = normal(*a.shape)
    kept, by_chance = ((gradient @ torch.linalg.qr(rows.T).Q).norm() for rows in (a, drawn))
    assert kept > 1.3 * by_chance


def test_the_rows_of_a_come_nearer_to_the_leading_singular_vectors_with_each_term():
    weight = decaying(24, 26)  # 26 is padded
    held = []
    vectors = torch.linalg.svd(weight).Vh[:4].T
    for terms in (1, 2, 4, 8):
        form = form_of(24, 26, (2, 2), terms, in_shape=(7, 4))
        rows = kron_sum(*singular_factors(InitContext(form, lambda: weight)).a)[:, :26]
        held.append(float((torch.linalg.qr(rows.T).Q.T @ vectors).square().sum()) / 4)
    assert held == sorted(held)
    assert_close(held[-1], 1.0, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("rank_shape", "terms"), [((2, 2), 1), ((4, 2), 16)])
def test_a_random_factor_a_has_the_variance_of_lora(rank_shape, terms):
    form = form_of(600, 600, rank_shape, terms)
    draws = [
        kron_sum(*random_factors(InitContext(form, torch.empty, generator=generator(seed))).a) for seed in range(100)
    ]
    assert torch.stack(draws).var().item() == pytest.approx(1 / (3 * 600), rel=0.1)


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_a_random_core_has_the_variance_of_one_over_its_rank(is_diagonal):
    form = FactorShapes.dense(64, 64, 64)
    source = InitContext(form, torch.empty, core_generator=generator(0), zero=False, is_diagonal=is_diagonal)
    draws = [fresh_core(source, torch.empty(0), torch.empty(0)) for _ in range(100)]
    assert torch.stack(draws).var().item() == pytest.approx(1 / 64, rel=0.05)


SHAPES = {"query": (5, 4), "value": (3, 7), "dense": (6, 6)}


def gradients(seed):
    return {name: 10.0**-i * normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


@given(st.integers(1, 13), st.integers(0, 999))
def test_a_layer_gets_as_many_directions_as_it_has_of_the_largest_singular_values(budget, seed):
    values = {name: torch.linalg.svdvals(matrix) for name, matrix in gradients(seed).items()}
    least = torch.cat(list(values.values())).sort(descending=True).values[budget - 1] * (1 - 1e-9)
    expected = {name: int((of_layer >= least).sum()) for name, of_layer in values.items()}
    assert allocate(gradients(seed), budget) == {name: count for name, count in expected.items() if count}


MODELS = {"bert-padded": {"rank_shape": (2, 1)}, "gpt2": {}, "bert": {"rank_shape": (3,), "separation_rank": 1}}
BATCHES = [{**tokens(), "labels": torch.arange(4) % LABELS}]
BY_WEIGHT = [word for word, one in INITIALIZATIONS.items() if one.read is None]
each_model = pytest.mark.parametrize("name", MODELS)


def made(name, init, **fields):
    return Subject(name, {**MODELS[name], **fields, "init_weights": init}).fresh()


def collected(model, batches):
    """The gradients of the base layers through a fitted head."""
    layers = {name: layer.get_base_layer() for name, layer in find_lsr_layers(model).items()}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return examples_gradients(model, layers, batches, heads)


def assert_same(one, two, folder):
    """The same state, and the same bytes when saved, which load as what was saved."""
    first = one.state_dict()
    second = two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for model, path in ((one, folder / "one"), (two, folder / "two")):
        model.save_pretrained(str(path))
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


@each_model
@pytest.mark.parametrize("init", [*BY_WEIGHT, "gradient"])
def test_factors_that_are_initialized_later_are_those_of_the_usual_ways(name, init, tmp_path):
    later = made(name, True)
    usual = made(name, init)
    gradients = collected(later, BATCHES) if init == "gradient" else None
    started = []
    initialize_factors(later, init_weights=init, statistics=gradients, done=started.append)
    assert started == list(find_lsr_layers(later))
    if gradients is not None:
        initialize_from_data(usual, BATCHES)
    assert_same(later, usual, tmp_path)


@pytest.mark.parametrize("share", ["none", "layers"])
def test_bases_are_those_of_all_layers_that_share_them(share):
    """Against the bases of the very matrices; a pair of thin matrices is as good as their product."""
    core = {"rank_shape": (4,), "separation_rank": 1, "train": "core", "share": share}
    model = made("bert", "gradient", **core)
    one = collected(model, BATCHES)
    pairs = {name: (gradient, torch.eye(24, dtype=torch.float64)) for name, gradient in one.items()}
    groups = groups_of(model, "default")
    done = []
    initialize_factors(model, statistics=pairs, done=done.append)
    assert done == list(groups)
    assert len(groups) == (2 if share == "layers" else 4)
    for layers in groups.values():
        names = [layer.layer_name for layer in layers]
        left, right = leading_bases([one[name] for name in names], 4)
        for layer in layers:
            a, b = layer.adapter("default").matrices()
            assert_close(b.double(), left, atol=1e-5, rtol=0)
            assert_close(a.double(), right, atol=1e-5, rtol=0)
    assert torch.equal(logits(model), logits(tiny("bert")))


def test_examples_are_for_the_gradient_alone():
    says = (
        "init_weights must be 'gradient' or 'lora_update' or 'warm_start' to initialize from examples, got 'principal'"
    )
    refused(initialize_from_data, made("bert", "principal"), BATCHES, kind=ValueError, says=says)


OTHER = {"task_type": "SEQ_CLS", "target_modules": ["query"], "rank_shape": (3,), "seed": 0}


def test_an_adapter_that_is_not_the_active_one_starts_from_no_examples():
    model = get_peft_model(tiny("bert"), LsrConfig(**OTHER), adapter_name="a")
    model.add_adapter("b", LsrConfig(**OTHER, init_weights="warm_start"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    says = "adapter 'b' must be the active one, and 'a' is: call model.set_adapter('b') first"
    refused(initialize_from_data, model, BATCHES, "b", kind=ValueError, says=says)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("word", ["gradient", "lora_update", "warm_start"])
def test_a_model_with_injected_adapters_begins_like_one_of_peft(word):
    fields = {**OTHER, "init_weights": word}
    injected = inject_adapter_in_model(LsrConfig(**fields), tiny("bert"))
    wrapped = get_peft_model(tiny("bert"), LsrConfig(**fields | {"task_type": None}))
    for model in (injected, wrapped):
        initialize_from_data(model, BATCHES, head_steps=0)
    own = find_lsr_layers(injected)
    expected = find_lsr_layers(wrapped)
    assert own.keys() == expected.keys()
    for name, layer in own.items():
        assert_close(layer.adapter("default").matrices(), expected[name].adapter("default").matrices(), atol=0, rtol=0)
