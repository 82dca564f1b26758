"""Initial factors, cores and heads are those of dense definitions in float64, on plain transformers and PEFT.

The definitions: the singular values of a weight, of a gradient by autograd, or of the update of a LoRA run of PEFT.
"""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.testing import assert_close
from transformers import AutoTokenizer

from lsr import LsrConfig, initialize_from_data
from tests import reference, rows, tiny
from tests.helpers import change_params, read_json, run_stages, write

DENSE = {"rank_shape": [3], "separation_rank": 1}
CORE = DENSE | {"train": "core"}
FORMS = {
    "factors": DENSE,
    "sums": {"rank_shape": [2, 2], "separation_rank": 2},
    "cores": CORE,
    "diagonal": CORE | {"core": "diagonal"},
    "shared": DENSE | {"train": "all", "share": "layers"},
}
BY_EXAMPLES = ["gradient", "lora_update", "warm_start"]
WORDS = ["random", "principal", *BY_EXAMPLES]
# Of the LoRA run, as docs/explanation/initialization.md has it.
RANK = 16
SCALING = 2.0
RATE = 0.001
HEAD_RATE = 0.002
FIT_RATE = 0.01
LARGEST_NORM = 1.0


# References: what is read.


def loss_of(model, batch):
    """Return the loss that transformers computes."""
    return model(**batch).loss


def head_of(model, heads):
    """Return copies of the tensors of heads by name."""
    state = model.state_dict()
    return {name: state[name].clone() for name in state if name.startswith(tuple(heads))}


def fit_head(model, heads, batch, steps, loss):
    """Take steps of AdamW on one batch, for the head alone."""
    model.requires_grad_(False)
    modules = nn.ModuleList(model.get_submodule(head) for head in heads)
    parameters = list(modules.requires_grad_().parameters())
    if not parameters:
        return
    optimizer = torch.optim.AdamW(parameters, lr=FIT_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def mean_gradients(model, names, batches, loss):
    """Return dL/dW of the mean loss over batches of one size, (m, n) by layer."""
    model.requires_grad_(False)
    weights = [model.get_submodule(name).weight.requires_grad_() for name in names]
    losses = torch.stack([loss(model, batch) for batch in batches])
    gradients = torch.autograd.grad(losses.mean(), weights)
    found = zip(names, gradients, strict=True)
    return {name: reference.as_stored(model, name, gradient) for name, gradient in found}


def lora_run(model, names, heads, batches, loss, seed):
    """Return the model after a LoRA of PEFT has taken a step for each batch and is merged."""
    is_transposed = not isinstance(model.get_submodule(names[0]), nn.Linear)
    sizes = {"r": RANK, "lora_alpha": SCALING * RANK, "fan_in_fan_out": is_transposed}
    config = LoraConfig(**sizes, target_modules=names, modules_to_save=[*heads])
    outer = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    draws = torch.Generator().manual_seed(seed)
    groups = []
    for name, parameter in outer.named_parameters():
        if "lora_A" in name:
            drawn = torch.randn(parameter.shape, generator=draws)
            deviation = (3 * parameter.shape[1]) ** -0.5
            parameter.data = deviation * drawn.double()
        if parameter.requires_grad:
            rate = RATE if "lora_" in name else HEAD_RATE
            groups.append({"params": [parameter], "lr": rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        loss(outer, batch).backward()
        nn.utils.clip_grad_norm_(outer.parameters(), LARGEST_NORM)
        optimizer.step()
        schedule.step()
    return outer.merge_and_unload()


def weights_of(model, names):
    """Return copies of the weights (m, n) of layers by name."""
    return {name: reference.weight_of(model, name).detach().clone() for name in names}


def read_by(word, model, names, heads, batches, steps=0, seed=0, loss=loss_of):
    """Return the matrices that an initialization reads, by layer, and the tensors of the head after it."""
    fresh = head_of(model, heads)
    before = weights_of(model, names)
    if word == "principal":
        return before, fresh
    fit_head(model, heads, batches[0], steps, loss)
    if word == "gradient":
        return mean_gradients(model, names, batches, loss), fresh
    merged = lora_run(model, names, heads, batches, loss, seed)
    after = weights_of(merged, names)
    updates = {name: after[name] - before[name] for name in names}
    return updates, head_of(merged, heads) if word == "warm_start" else fresh


def layers_of(model, targets):
    """Return the names of the layers with these endings."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets]


# References: what is made of it.


def svd(matrix, rank):
    """Return the leading part U (m, r), S (r,), V^T (r, n); the largest entry of each right vector is positive."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = right.abs().argmax(dim=1, keepdim=True)
    signs = right.gather(1, largest).sign()
    return (left * signs.T)[:, :rank], values[:rank], (signs * right)[:rank]


def assert_near(found, expected, tolerance=2e-3):
    """Hold a matrix to another by the norm of the difference: float32 and gaps of singular values leave little."""
    assert expected.norm() > 0
    difference = found.double() - expected
    assert difference.norm() < tolerance * expected.norm()


def nearest_side(matrix, factors, side):
    """Return the sum of Kronecker products of the shapes of a side's factors that is nearest to a matrix.

    It is found by the SVD of the rearranged matrix (Van Loan & Pitsianis 1993).
    """
    terms, p, i = factors[f"{side}1"].shape
    _, q, j = factors[f"{side}2"].shape
    rearranged = matrix.reshape(p, q, i, j).transpose(1, 2).reshape(p * i, q * j)
    left, values, right = svd(rearranged, terms)
    kept = left * values @ right
    return kept.reshape(p, i, q, j).transpose(1, 2).reshape(p * q, i * j)


def joint_energy(matrices, rank):
    """Return the energy that the best joint bases of normalized matrices hold, by TensorLy."""
    stack = torch.stack([matrix / matrix.norm() for matrix in matrices])
    (core, _), _ = partial_tucker(stack.numpy(), [rank, rank], modes=[1, 2], n_iter_max=200, tol=1e-12)
    return np.square(core).sum()


def sides(factors, matrix):
    """Return A, B and the core of a layer, formed densely in float64."""
    precise = {name: value.double() for name, value in factors.items()}
    return reference.sides(precise, *matrix.shape)


def check_factors(matrices, group, scaling):
    """Hold an update to the truncated SVD; or A to the leading right vectors with LoRA's norm, and B to zero."""
    a, b, _ = sides(group[0], matrices[0])
    left, values, right = svd(matrices[0], len(a))
    if scaling:
        assert_near(scaling * b @ a, left * values @ right)
    else:
        assert_near(3 * a.T @ a, right.T @ right)
        assert not b.any()


def check_sums(matrices, group, scaling):
    """Hold both sides to the nearest sums to those of the SVD; or A with LoRA's norm, and B to zero."""
    factors = group[0]
    a, b, _ = sides(factors, matrices[0])
    left, values, right = svd(matrices[0], len(a))
    if scaling:
        roots = (values / scaling).sqrt()
        assert_near(a, nearest_side(roots[:, None] * right, factors, "factor_A"))
        assert_near(b, nearest_side(left * roots, factors, "factor_B"))
        return
    nearest = nearest_side(right, factors, "factor_A")
    usual = (len(a) / 3) ** 0.5
    assert_near(a, usual / nearest.norm() * nearest)
    assert not b.any()
    for name in ("factor_A2", "factor_B2"):
        mean = float(factors[name].square().mean())
        assert mean == pytest.approx(1 / len(factors[name]))


def check_bases(matrices, group, scaling):
    """Hold bases to be the best orthonormal ones, and cores to the nearest ones between them, or to zero.

    Return the mean fraction of the energy of matrices that is between the bases.
    """
    a, b, _ = sides(group[0], matrices[0])
    rank = len(a)
    unit = torch.eye(rank).double()
    assert_near(a @ a.T, unit, 1e-5)
    assert_near(b.T @ b, unit, 1e-5)
    held = 0.0
    for matrix, factors in zip(matrices, group, strict=True):
        between = b.T @ matrix @ a.T
        held += float(between.norm() / matrix.norm()) ** 2
        core = factors["core"]
        if core.dim() == 1:
            core = core.diag()
            assert_near(between.diag().diag(), between)
        if scaling:
            assert_near(scaling * core, between)
        else:
            assert not core.any()
    assert held == pytest.approx(joint_energy(matrices, rank), rel=1e-4)
    return held / len(matrices)


CHECKS = {"factors": check_factors, "sums": check_sums, "shared": check_bases}
CHECKS |= dict.fromkeys(("cores", "diagonal"), check_bases)


def check(word, form, matrices, head, folder):
    """Hold what is saved to the head, and to the matrices that were read, by group; return their mean energies."""
    fields = reference.fields_of(folder)
    factors = reference.factors_of(folder)
    assert factors.keys() == matrices.keys()
    groups = {}
    for name in matrices:
        key = re.sub(r"\d+", "*", name) if form == "shared" else name
        groups.setdefault(key, []).append(name)
    energies = []
    for names in groups.values():
        own = [matrices[name] for name in names]
        group = [factors[name] for name in names]
        a, _, _ = sides(group[0], own[0])
        divisor = reference.DIAGONAL if fields["core"] == "diagonal" else len(a)
        scaling = fields["alpha"] / divisor if word == "warm_start" else 0.0
        energies.append(CHECKS[form](own, group, scaling))
    saved = reference.tensors_of(folder)
    for name, value in head.items():
        assert_close(saved[name].double(), value.double(), rtol=1e-4, atol=1e-5)
    return energies


# By the library.


def batches_of(*sizes, causal=False):
    """Return labeled batches of these sizes, cut from the same examples."""
    whole = tiny.batch(sum(sizes))
    whole["labels"] = whole["input_ids"] if causal else torch.arange(sum(sizes)) % tiny.LABELS
    batches = [{} for _ in sizes]
    for name, values in whole.items():
        for batch, part in zip(batches, values.split(sizes), strict=True):
            batch[name] = part
    return batches


def config_of(word, form="factors", architecture="bert", **fields):
    """Return the configuration of an adapter on the usual layers."""
    targets = tiny.ARCHITECTURES[architecture].targets
    usual = {"task_type": "SEQ_CLS", "target_modules": targets, "alpha": 5, "seed": 0}
    return LsrConfig(**usual | FORMS[form] | {"init_weights": word} | fields)


def fresh(word, form="factors", **fields):
    """Return BERT with an adapter that has not read examples."""
    return get_peft_model(tiny.base_model("bert"), config_of(word, form, **fields))


def started(word, form="factors", seed=0, **fields):
    """Return BERT with an adapter that has read a few examples, if its initialization reads some."""
    model = fresh(word, form, seed=seed, **fields)
    if word in BY_EXAMPLES:
        initialize_from_data(model, batches_of(2, 2, 2), head_steps=2, seed=seed)
    return model


def are_equal(state, other):
    """Return whether tensors by name have the same bits."""
    return all(torch.equal(value, other[name]) for name, value in state.items())


def copy_of(model):
    """Return copies of all tensors of a model by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def first_factor(model):
    """Return A1 of the first layer."""
    return next(value for name, value in model.state_dict().items() if "factor_A1" in name)


ONE = [6]
SEVERAL = [3, 3, 3]
CASES = [  # what is read, the form, the architecture, whether it writes, steps for the head, and sizes of batches
    ("principal", "factors", "gpt2", False, 0, ONE),
    ("principal", "sums", "distilbert", False, 0, ONE),
    ("principal", "cores", "roberta", False, 0, ONE),
    ("principal", "shared", "llama", True, 0, ONE),
    ("gradient", "factors", "gpt2", False, 0, SEVERAL),
    ("gradient", "sums", "bert", False, 5, ONE),
    ("gradient", "diagonal", "distilbert", False, 5, ONE),
    ("gradient", "shared", "qwen2", True, 5, SEVERAL),
    ("lora_update", "cores", "gpt2", False, 3, ONE),
    ("lora_update", "factors", "distilbert", False, 0, SEVERAL),
    ("warm_start", "factors", "llama", True, 3, SEVERAL),
    ("warm_start", "sums", "gpt2", False, 0, SEVERAL),
    ("warm_start", "diagonal", "bert", False, 0, SEVERAL),
    ("warm_start", "shared", "distilbert", False, 3, ONE),
    ("warm_start", "factors", "bert", False, 0, [2, 2, 2] * 12),
]
NAMES = ("word", "form", "architecture", "causal", "steps", "sizes")


@pytest.mark.parametrize(NAMES, CASES, ids=["-".join(case[:3]) for case in CASES])
def test_an_initialization_is_that_of_dense_definitions(word, form, architecture, causal, steps, sizes, tmp_path):
    base = tiny.base_model(architecture, causal=causal).double()
    before = tiny.logits(base)
    batches = batches_of(*sizes, causal=causal)
    task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
    model = get_peft_model(base, config_of(word, form, architecture, task_type=task_type))
    with warnings.catch_warnings(action="error"):
        if word in BY_EXAMPLES:
            initialize_from_data(model, iter(batches), head_steps=steps, seed=5)
    model.save_pretrained(str(tmp_path))
    plain = tiny.base_model(architecture, causal=causal).double()
    heads = [] if causal else tiny.ARCHITECTURES[architecture].heads
    names = layers_of(plain, tiny.ARCHITECTURES[architecture].targets)
    matrices, head = read_by(word, plain, names, heads, batches, steps, seed=5)
    check(word, form, matrices, head, tmp_path)
    assert torch.equal(tiny.logits(model), before) == (word != "warm_start")


@pytest.mark.parametrize("sizes", [[3, 1, 2], [1] * 6])
def test_examples_count_the_same_however_they_are_cut(sizes):
    factors = []
    for cut in (ONE, sizes):
        model = fresh("gradient")
        initialize_from_data(model, batches_of(*cut), head_steps=0)
        factors.append(first_factor(model))
    assert_close(*factors, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("word", WORDS)
def test_the_same_seed_gives_the_same_bytes_and_draws_nothing_elsewhere(word, form, tmp_path):
    written = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = started(word, form)
        assert torch.equal(torch.get_rng_state(), state)
        model.save_pretrained(str(tmp_path / str(seed)))
        written.append((tmp_path / str(seed) / "adapter_model.safetensors").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("word", ["random", *BY_EXAMPLES])
def test_another_seed_gives_other_values(word):
    one = started(word, seed=1)
    other = started(word, seed=3)
    assert not torch.equal(first_factor(one), first_factor(other))


def test_random_values_of_each_layer_are_its_own_and_do_not_depend_on_the_others():
    alone = get_peft_model_state_dict(fresh("random", "sums", target_modules=["value"]))
    every = get_peft_model_state_dict(fresh("random", "sums"))
    assert len(alone) < len(every)
    assert are_equal(alone, every)
    drawn = [tuple(value.flatten().tolist()) for name, value in every.items() if "factor_A" in name]
    assert len(set(drawn)) == len(drawn)


def draw(seed, fields):
    """Return A, B and the core of an adapter of one layer."""
    config = LsrConfig(target_modules=["0"], seed=seed, **fields)
    model = get_peft_model(nn.Sequential(nn.Linear(600, 600)), config)
    state = get_peft_model_state_dict(model)
    factors = {name.rpartition(".")[2]: value for name, value in state.items()}
    return reference.sides(factors, 600, 600)


ALL_RANDOM = {"rank_shape": (64,), "train": "core", "init_weights": False}


@pytest.mark.parametrize(
    ("part", "fields", "variance"),
    [
        (0, {"rank_shape": (2, 2), "separation_rank": 1}, 1 / 1800),
        (0, {"rank_shape": (4, 2), "separation_rank": 16}, 1 / 1800),
        (0, {"rank_shape": (4,)}, 1 / 1800),
        (1, {"rank_shape": (4,), "init_weights": False}, 1 / 12),
        (2, ALL_RANDOM, 1 / 64),
        (2, ALL_RANDOM | {"core": "diagonal"}, 1 / 64),
    ],
)
def test_random_values_have_the_variance_of_those_of_lora(part, fields, variance):
    values = torch.cat([draw(seed, fields)[part].flatten() for seed in range(40)])
    drawn = values[values != 0]
    assert float(drawn.var()) == pytest.approx(variance, rel=0.1)


def test_random_bases_around_a_core_are_orthonormal():
    a, b, core = draw(0, {"rank_shape": (3,), "train": "core"})
    assert_close(a @ a.T, torch.eye(3))
    assert_close(b.T @ b, torch.eye(3))
    assert not core.any()


MOVING = [("random", form, {}) for form in FORMS]
MOVING += [("gradient", "sums", {}), ("warm_start", "factors", {"rank_shape": 24})]


@pytest.mark.parametrize(("word", "form", "fields"), MOVING)
def test_everything_that_is_trained_moves_within_two_steps(word, form, fields):
    """Also the columns of B beyond the rank of the LoRA run, which begin at zero."""
    model = started(word, form, **fields)
    before = copy_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    (batch,) = batches_of(6)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    for name, value in model.named_parameters():
        moved = value != before[name]
        assert moved.any() == value.requires_grad, name
        if "factor_B1" in name:
            assert moved.any(dim=-2).all()


# What it leaves alone.


def used():
    """Return BERT with an adapter in the middle of training: with dropout, gradients, and a part in evaluation mode."""
    base = tiny.base_model("bert", hidden_dropout_prob=0.4)
    model = get_peft_model(base, config_of("warm_start", dropout=0.3)).train()
    (batch,) = batches_of(6)
    with torch.random.fork_rng():
        model(**batch).loss.backward()
    model.base_model.model.bert.embeddings.eval()
    return model


def modes(model):
    """Return all that an epoch over examples might leave changed, but for values."""
    states = [module.training for module in model.modules()]
    for parameter in model.parameters():
        states.append(parameter.requires_grad)
        states.append(None if parameter.grad is None else parameter.grad.tolist())
    return states


@pytest.mark.parametrize("steps", [0, 2])
def test_it_leaves_all_else_as_it_was_and_takes_no_dropout_and_a_failure_changes_nothing(steps):
    model = used()
    before = modes(model)
    values = copy_of(model)
    with pytest.raises(ValueError, match="labels"):
        initialize_from_data(model, [*batches_of(3, 3), tiny.batch()], head_steps=steps)
    assert modes(model) == before
    assert are_equal(values, model.state_dict())
    expected = fresh("warm_start")
    for each in (model, expected):
        initialize_from_data(each, batches_of(2, 2, 2), head_steps=steps)
    assert modes(model) == before
    assert are_equal(expected.state_dict(), model.state_dict())
    assert torch.equal(tiny.logits(model), tiny.logits(expected))
    base = tiny.base_model("bert").bert.state_dict()
    assert are_equal(base, model.unload().bert.state_dict())


# Runs that fail, and heads that die.


def test_a_long_run_in_which_the_loss_does_not_fall_warns():
    inputs = {name: values.repeat(3, 1) for name, values in tiny.batch(1).items()}
    batch = inputs | {"labels": torch.arange(3)}  # of the same text, so there is nothing to learn
    with pytest.warns(UserWarning, match="loss"):
        initialize_from_data(fresh("warm_start"), [batch] * 36)


class Rectified(nn.Module):
    """A model whose head has a rectifier that is dead after steps of 0.01, and of 0.001."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
        self.head[0].weight.data.fill_(0.0005)
        self.head[2].weight.data.fill_(1.0)

    def forward(self, x, labels):
        features = x + 0.01 * self.body(x)
        return SimpleNamespace(loss=nn.functional.mse_loss(self.head(features), labels))


def test_a_head_that_a_large_step_kills_is_fitted_by_smaller_ones():
    config = LsrConfig(target_modules=["body"], modules_to_save=["head"], init_weights="gradient", rank_shape=1)
    model = get_peft_model(Rectified(), config)
    before = first_factor(model).clone()
    batch = {"x": torch.ones(2, 4), "labels": torch.tensor([[-1.0], [-2.0]])}
    initialize_from_data(model, [batch], head_steps=2)
    assert not torch.equal(first_factor(model), before)


# Mistakes.


SAME = tiny.batch() | {"labels": torch.full((4,), 2)}


@pytest.mark.parametrize(("batches", "says"), [([], "examples"), ([tiny.batch()], "labels"), ([SAME, SAME], "label 2")])
@pytest.mark.parametrize("word", BY_EXAMPLES)
def test_examples_that_teach_nothing_are_rejected(word, batches, says):
    with pytest.raises(ValueError, match=says):
        initialize_from_data(fresh(word), batches)


@pytest.mark.parametrize(("value", "says"), [(0.0, "zero"), (torch.nan, "finite")])
@pytest.mark.parametrize("form", ["sums", "shared"])
def test_a_weight_without_directions_is_rejected_with_its_name(form, value, says):
    base = tiny.base_model("bert")
    for name in layers_of(base, ["value"]):
        base.get_submodule(name).weight.data.fill_(value)
    with pytest.raises(ValueError, match=rf"value.*{says}"):
        get_peft_model(base, config_of("principal", form))


def test_only_an_active_adapter_whose_initialization_reads_examples_does():
    model = fresh("principal")
    model.add_adapter("other", config_of("warm_start"))
    for name, says in (("default", "principal"), ("other", "active")):
        with pytest.raises(ValueError, match=says):
            initialize_from_data(model, batches_of(4), name)


# By the stage factorize_init.


TEXTS = 8  # a batch of the LoRA run
FILES = {split: f"data/{split}.csv" for split in ("train", "validation", "test")}
SOURCE = {"source": {"kind": "files", "files": FILES}, "split": {}}
COUNT = 10  # of directions of all layers
DIRECTIONS = {"rank_shape": [1], "separation_rank": "auto", "total_directions": COUNT}
READ = {"init_head_steps": 3}
RUN = READ | {"init_epochs": 2}
STAGE_CASES = [  # what is read, the form, labels, the architecture, and options
    ("principal", "shared", "three", "llama", {}),
    ("gradient", "diagonal", "pairs", "modernbert", READ | DIRECTIONS),
    ("lora_update", "cores", "pairs", "roberta", RUN),
    ("warm_start", "diagonal", "three", "distilbert", RUN | DIRECTIONS),
]
STAGE_NAMES = ("word", "form", "data", "architecture", "options")


def prepare(folder, entry, architecture="bert", count=TEXTS, unit=1):
    """Make a workspace with this number of texts to train on, of which there are only the tokens; return its folder."""
    rows.make_workspace(folder, "own", architecture, entries={"own": entry | SOURCE})
    examples = rows.examples(count + 12)
    for row in examples:
        row["rating"] *= unit
    parts = examples[:count], examples[count:-6], examples[-6:]
    for split, part in zip(FILES, parts, strict=True):
        write(folder / FILES[split], part)
    return run_stages(folder, "tokenize")


def initialize(folder, word, form="factors", **options):
    """Run the stage with an initialization, and return the adapter's folder."""
    usual = {"share": "none", "core": "full", "total_directions": "none"}
    change_params(folder, lsr={"init": word} | usual | FORMS[form] | options)
    run_stages(folder, "factorize_init")
    return folder / "artifacts/init"


def training_examples(folder, entry):
    """Return the inputs of each training text, alone and without padding, with its class."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    label = entry["label"]
    examples = []
    for row in rows.examples(TEXTS):
        texts = tuple(row[column] for column in entry["text"])
        inputs = reference.encoded(tokenizer, texts, rows.SMALL["tokenize"]["max_length"])
        place = label["names"].index(row[label["column"]])
        examples.append({**inputs, "labels": torch.tensor([place])})
    return examples


def loss_alone(model, examples):
    """Return the mean loss of examples, each of which passes alone."""
    return torch.stack([model(**example).loss for example in examples]).mean()


def ranks_by_values(matrices, count):
    """Return how many of the largest singular values of all matrices each has, if it has some."""
    values = {name: torch.linalg.svdvals(matrix) for name, matrix in matrices.items()}
    least = torch.cat([*values.values()]).sort().values[-count]
    return {name: int((own >= least).sum()) for name, own in values.items() if own[0] >= least}


@pytest.mark.parametrize(STAGE_NAMES, STAGE_CASES, ids=["-".join(case[:4]) for case in STAGE_CASES])
def test_the_stage_reads_each_training_text_as_if_it_were_alone(word, form, data, architecture, options, tmp_path):
    entry = rows.ENTRIES[data]
    folder = prepare(tmp_path, entry, architecture)
    base = folder / "models" / architecture
    model = reference.load_alone(base, outputs=len(entry["label"]["names"])).double()
    reference.load_head(model, initialize(folder, "random"))
    saved = initialize(folder, word, form, **options)
    known = tiny.ARCHITECTURES[architecture]
    names = layers_of(model, known.targets)
    batches = [training_examples(base, entry)] * options.get("init_epochs", 1)
    matrices, head = read_by(word, model, names, known.heads, batches, steps=3, loss=loss_alone)
    if form == "diagonal":
        ranks = ranks_by_values(matrices, COUNT)
        assert {name: len(own["core"]) for name, own in reference.factors_of(saved).items()} == ranks
        matrices = {name: matrices[name] for name in ranks}
    energies = check(word, form, matrices, head, saved)
    metrics = read_json(folder / "reports/factorize_init/metrics.json")
    assert metrics["energy"] == pytest.approx(np.mean(energies), rel=1e-3)


def test_numbers_in_other_units_give_the_same_warm_start(tmp_path):
    entry = rows.ENTRIES["number"] | {"label": {"column": "rating", "low": 0, "high": 4000}}
    found = []
    for unit in (1, 1000):
        folder = prepare(tmp_path / str(unit), entry, unit=unit)
        tensors = reference.tensors_of(initialize(folder, "warm_start"))
        tensors["classifier.weight"] /= unit
        tensors["classifier.bias"] /= unit
        found.append(tensors)
    assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("read", "examples"), [(1024, 24 * 32), (16, 16)])
def test_a_lora_run_reads_the_whole_of_a_small_split_again_and_again_but_a_part_once(read, examples, tmp_path):
    """It takes at least 96 steps of eight examples."""
    folder = prepare(tmp_path, rows.ENTRIES["two"], count=32)
    initialize(folder, "warm_start", init_examples=read, init_head_steps=0)
    assert read_json(folder / "reports/factorize_init/metrics.json")["start_read"] == examples


@pytest.mark.parametrize("head", ["shared", "own"])
def test_after_a_warm_start_tenants_with_the_same_labels_share_a_head_unless_each_has_its_own(head, tmp_path):
    entry = rows.ENTRIES["tenants"] | {"label": {"column": "weather"}}
    folder = rows.make_workspace(tmp_path, "both", entries={"both": entry}, tenants={"head": head})
    run_stages(folder, "tokenize")
    weight = reference.tensors_of(initialize(folder, "warm_start"))["classifier.weight"]
    assert torch.equal(weight[:2], weight[2:]) == (head == "shared")
    assert not torch.equal(weight[0], weight[1])
