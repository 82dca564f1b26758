"""What factorize-init writes is what dense definitions give, in float64, on plain transformers and PEFT.

These are the singular value decomposition of a weight, of the mean gradient by autograd, and of the update of a short
LoRA run of PEFT. Each example passes alone, without padding; the stage takes batches, in float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from pipeline.core import artifacts
from pipeline.data import tokens
from tests import kit, workspace
from tests.references import models, plain, texts
from tests.stages.running import FACTORIZE, TOKENIZE, run

FORMS = {
    "factors": {"rank_shape": [3], "separation_rank": 1, "share": "none", "train": "factors"},
    "sums": {"rank_shape": [2, 2], "separation_rank": 2, "share": "none", "train": "factors"},
    "cores": {"rank_shape": [3], "separation_rank": 1, "share": "none", "train": "core"},
    "shared": {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "all"},
    "directions": {
        "rank_shape": [1],
        "separation_rank": "auto",
        "share": "none",
        "train": "core",
        "core": "diagonal",
        "total_directions": 10,
    },
}
ONE_BATCH = {"init_examples": 8, "init_head_steps": 3}
HEAD_STEPS = 3
ALL = {"init_examples": 1024, "init_head_steps": 0}
RUN = ALL | {"init_epochs": 1}  # a short run takes a step for each eight of 32 texts
RUN_3 = ALL | {"init_epochs": 3}
RUN_ONE = ONE_BATCH | {"init_epochs": 1}
PART = ALL | {"init_examples": 24}  # of which a short run has one epoch, as there are more
LAYERS = {
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
    "gpt2": ["c_attn"],
    "qwen2": ["q_proj", "v_proj"],
}
HEADS = {
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
    "gpt2": ["score"],
    "qwen2": ["score"],
}
CASES = [  # the initialization, the form, labels, the architecture, its dtype, and examples
    ("principal", "factors", "three", "gpt2", torch.bfloat16, ALL),
    ("principal", "sums", "three", "roberta", torch.float32, ALL),
    ("principal", "shared", "three", "qwen2", torch.float32, ALL),
    ("gradient", "factors", "number", "qwen2", torch.float32, ALL),
    ("gradient", "cores", "three", "gpt2", torch.float32, ONE_BATCH),
    ("gradient", "shared", "multi_label", "modernbert", torch.bfloat16, ONE_BATCH),
    ("lora_update", "sums", "three", "distilbert", torch.float32, RUN_ONE),
    ("lora_update", "cores", "number", "qwen2", torch.bfloat16, RUN),
    ("warm_start", "factors", "multi_label", "gpt2", torch.float32, RUN_3),
    ("warm_start", "shared", "three", "roberta", torch.float32, RUN),
    ("warm_start", "factors", "number", "distilbert", torch.float32, PART),
    ("warm_start", "factors", "number", "distilbert", torch.float32, ALL),
    ("warm_start", "directions", "three", "qwen2", torch.float32, RUN_ONE),
]
# Of the short run, as docs/explanation/initialization.md has it.
RANK = 16
SCALING = 2.0
RATE = 0.001
HEAD_RATE = 0.002
SOURCE = {"kind": "files", "files": {name: f"{name}.csv" for name in ("train", "validation", "test")}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with 32 texts to train on, in which nothing has run."""
    rows = {name: {**row, "source": SOURCE, "split": {}} for name, row in texts.ROWS.items()}
    folder = workspace.make(tmp_path_factory.mktemp("initialization"), rows, adapter="lsr")
    examples = texts.examples(48)
    for split, some in (("train", examples[:32]), ("validation", examples[32:40]), ("test", examples[40:])):
        kit.write(folder / f"{split}.csv", some)
    return folder


@pytest.fixture
def go(world, monkeypatch):
    """A function that runs tokenize and factorize-init, and returns the checkpoint and the head before."""
    usual = (world / "params.yaml").read_bytes()
    monkeypatch.chdir(world)

    def stages(word, form, labels, architecture, dtype, examples):
        folder = Path(f"models/{architecture}-{dtype}")
        if not folder.exists():
            models.save(folder, architecture, dtype)
        targets = {"target_modules": LAYERS[architecture]}
        workspace.change(data=labels, model=str(folder), lsr={"init": "random", **targets})
        run(TOKENIZE, FACTORIZE)
        head = head_in(artifacts.INIT)
        read = {} if word == "principal" else examples  # which are refused where they would have no effect
        workspace.change(lsr=FORMS[form] | read | {"init": word})
        run(FACTORIZE)
        return folder, head

    yield stages
    (world / "params.yaml").write_bytes(usual)


def head_in(folder):
    return {name: tensor for name, tensor in plain.tensors_of(folder).items() if plain.MARK not in name}


@pytest.mark.parametrize(
    ("word", "form", "labels", "architecture", "dtype", "examples"),
    CASES,
    ids=["-".join((*case[:4], str(case[4]).removeprefix("torch."))) for case in CASES],
)
def test_an_initialization_is_that_of_dense_definitions(go, word, form, labels, architecture, dtype, examples):
    folder, head = go(word, form, labels, architecture, dtype, examples)
    outputs = len(texts.ROWS[labels]["label"].get("names", [0]))
    model = plain.base_model(folder, num_labels=outputs).double()
    model.load_state_dict(head, strict=False)
    units = None
    if labels == "number":
        layer = last_layer(model)
        units = plain.LabelUnits.of(tokens.load_tokens("train")["label"][:], layer)
        units.standardize(layer)
    factors = plain.factors_of(artifacts.INIT)
    fields = plain.fields_of(artifacts.INIT)
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in LAYERS[architecture]]
    size = {"gradient": 32}.get(word, 8)
    batches = list(tokens.sample(tokens.load_tokens("train"), dict, examples["init_examples"], 0, size))
    whole = 24 if examples["init_examples"] >= 32 else 1  # 96 steps of the whole split, or an epoch of a part
    run = in_epochs(batches, examples.get("init_epochs", whole))
    if word == "principal":
        read = {name: plain.weight_of(model, name).detach() for name in names}
    elif word == "gradient":
        read = mean_gradients(model, names, HEADS[architecture], batches, labels, units, examples["init_head_steps"])
    else:
        read, head = short_run(model, names, HEADS[architecture], run, labels, units, examples["init_head_steps"])
        if units is not None:
            for name in head:
                if name.rpartition(".")[0] == last_name(model):
                    head[name] = units.label(name, head[name])
    check = {"warm_start": WARM, "lora_update": COLD, "gradient": COLD, "principal": COLD}[word][form]
    check(read, factors, fields)
    for name, tensor in head_in(artifacts.INIT).items():
        expected = head[name] if word == "warm_start" or word == "principal" else tensor
        torch.testing.assert_close(tensor.double(), expected.double(), rtol=1e-4, atol=1e-5)


def last_name(model):
    """Return the name of the head's last layer, the last linear layer outside of the backbone."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1].split(".modules_to")[0]


def last_layer(model):
    return model.get_submodule(last_name(model))


def in_epochs(batches, epochs):
    """Return the batches of all epochs; those after the first are in an order that the seed draws."""
    draws = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(batches), generator=draws).tolist() for _ in range(epochs - 1)]
    return batches + [batches[place] for order in orders for place in order]


def loss_of(model, batch, labels, units):
    """Return the mean loss of a batch, each of whose examples passes alone."""
    losses = []
    for place, label in enumerate(batch["label"]):
        inputs = {name: torch.tensor([batch[name][place]]) for name in ("input_ids", "token_type_ids") if name in batch}
        logits = model(**inputs).logits
        wanted = torch.tensor([label])
        if labels == "number":
            losses.append(units.loss(logits[0, 0], wanted[0].double()))
        elif labels == "multi_label":
            losses.append(F.binary_cross_entropy_with_logits(logits, wanted.double()))
        else:
            losses.append(F.cross_entropy(logits, wanted))
    return torch.stack(losses).mean()


def parameters_of(model, modules):
    return [parameter for name in modules for parameter in model.get_submodule(name).parameters()]


def fit_head(model, head, batches, labels, units, steps):
    """Take steps of AdamW at the rate 0.01 on one batch."""
    assert steps == 0 or len(batches) == 1
    model.requires_grad_(False)
    parameters = [parameter.requires_grad_(True) for parameter in parameters_of(model, head)]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batches[0], labels, units).backward()
        optimizer.step()


def mean_gradients(model, names, head, batches, labels, units, steps):
    """Return dL/dW over all examples, (m, n) by layer, through a fitted head."""
    fit_head(model, head, batches, labels, units, steps)
    model.requires_grad_(False)
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in names]
    whole = {key: [value for batch in batches for value in batch[key]] for key in batches[0]}
    gradients = torch.autograd.grad(loss_of(model, whole, labels, units), weights)
    return {name: plain.as_stored(model, name, one) for name, one in zip(names, gradients, strict=True)}


def short_run(model, names, head, batches, labels, units, steps):
    """Return the update of each layer and the head after a LoRA of PEFT has taken a step for each batch."""
    fit_head(model, head, batches, labels, units, steps)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=SCALING * RANK,
        target_modules=names,
        modules_to_save=[*head],  # PEFT adds to the list
        fan_in_fan_out="c_attn" in names[0],
    )
    outer = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    layers = {name: outer.get_base_model().get_submodule(name) for name in names}
    draws = torch.Generator().manual_seed(0)
    for layer in layers.values():
        a = layer.lora_A["default"].weight
        a.data = (torch.randn(a.shape, generator=draws) / (3 * a.shape[1]) ** 0.5).double()
    factors = [parameter for name, parameter in outer.named_parameters() if "lora_" in name]
    trained_head = [p for name, p in outer.named_parameters() if "lora_" not in name and p.requires_grad]
    groups = [{"params": factors, "lr": RATE}, {"params": trained_head, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        loss_of(outer, batch, labels, units).backward()
        nn.utils.clip_grad_norm_([*factors, *trained_head], 1.0)
        optimizer.step()
        schedule.step()
    updates = {
        name: SCALING * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        for name, layer in layers.items()
    }
    saved = {
        name.replace("modules_to_save.default.", ""): value
        for name, value in outer.get_base_model().state_dict().items()
    }
    return updates, saved


# What an initialization makes of the matrices that it reads.


def svd(matrix, rank):
    """Return the leading part U (m, r), S (r,), V^T (r, n) of a singular value decomposition by NumPy.

    The largest entry of each right vector is positive.
    """
    left, values, right = (torch.from_numpy(part) for part in np.linalg.svd(matrix.numpy(), full_matrices=False))
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    return (left * signs.T)[:, :rank], values[:rank], (right * signs)[:rank]


def near(found, expected, tolerance=2e-3):
    """Hold a matrix to another by the norm of the difference: float32 and gaps of singular values leave little."""
    assert expected.norm() > 0
    assert float((found.double() - expected).norm() / expected.norm()) < tolerance


def orthogonal_projection(rows):
    """Return the projection on the span of orthonormal rows."""
    return rows.T @ rows


def cold_factors(read, factors, fields):
    """Hold A to the leading right singular vectors with LoRA's norm, ||A||^2 = r / 3, and B to zero."""
    for name, matrix in read.items():
        a, b, _ = plain.sides(factors[name], *matrix.shape)
        near(3 * a.T @ a, orthogonal_projection(svd(matrix, 3)[2]))
        assert not b.any()


def cold_sums(read, factors, fields):
    """Hold A to the nearest sum of two Kronecker products to the leading right singular vectors, with LoRA's norm."""
    for name, matrix in read.items():
        a, b, _ = plain.sides(factors[name], *matrix.shape)
        nearest = nearest_sum(svd(matrix, 4)[2], [tuple(factors[name][f"factor_A{i}"].shape[1:]) for i in (1, 2)], 2)
        near(a, nearest * (4 / 3) ** 0.5 / nearest.norm())
        assert not b.any()


def nearest_sum(matrix, shapes, terms):
    """Return the nearest sum of Kronecker products by the SVD of the rearranged matrix (Van Loan & Pitsianis 1993)."""
    (r1, n1), (r2, n2) = shapes
    padded = F.pad(matrix, (0, n1 * n2 - matrix.shape[1]))
    rearranged = padded.reshape(r1, r2, n1, n2).transpose(1, 2).reshape(r1 * n1, r2 * n2)
    left, values, right = svd(rearranged, terms)
    kept = (left * values) @ right
    whole = kept.reshape(r1, n1, r2, n2).transpose(1, 2).reshape(r1 * r2, n1 * n2)
    return whole[:, : matrix.shape[1]]


def cold_cores(read, factors, fields):
    """Hold the bases of each layer to its singular vectors, and its core to zero."""
    for name, matrix in read.items():
        a, b, core = plain.sides(factors[name], *matrix.shape)
        left, _, right = svd(matrix, 3)
        near(a.T @ a, orthogonal_projection(right))
        near(b @ b.T, orthogonal_projection(left.T))
        assert not core.any()


def kinds(read, factors):
    """Yield the matrices of layers that share bases, with these and the names of the layers."""
    names = {}
    for name in read:
        names.setdefault(name.rpartition(".")[2], []).append(name)
    for group in names.values():
        a, b, _ = plain.sides(factors[group[0]], *read[group[0]].shape)
        yield group, [read[name] for name in group], a.double(), b.double()


def joint_energy(matrices, rank):
    """Return the energy that the best joint bases of normalized matrices hold, by plain alternating projections."""
    stack = torch.stack([matrix / matrix.norm() for matrix in matrices])
    right = torch.linalg.svd(stack.flatten(0, 1), full_matrices=False).Vh[:rank].T
    for _ in range(300):
        left = torch.linalg.svd((stack @ right).transpose(0, 1).flatten(1), full_matrices=False).U[:, :rank]
        right = torch.linalg.svd((left.T @ stack).flatten(0, 1), full_matrices=False).Vh[:rank].T
    return float((left.T @ stack @ right).square().sum())


def shared_bases(read, factors):
    """Hold the bases of each kind of layers to be orthonormal, and to hold as much energy as the best joint ones."""
    for _, matrices, a, b in kinds(read, factors):
        near(a @ a.T, torch.eye(3, dtype=torch.float64), 1e-5)
        near(b.T @ b, torch.eye(3, dtype=torch.float64), 1e-5)
        held = sum(float((b.T @ matrix @ a.T / matrix.norm()).square().sum()) for matrix in matrices)
        assert held == pytest.approx(joint_energy(matrices, 3), rel=1e-4)


def cold_shared(read, factors, fields):
    shared_bases(read, factors)
    assert not any(factors[name]["core"].any() for name in read)


def warm_factors(read, factors, fields):
    """Hold the initial update to the truncated SVD of that of the short run."""
    for name, matrix in read.items():
        a, b, _ = plain.sides(factors[name], *matrix.shape)
        left, values, right = svd(matrix, 3)
        near(plain.scaling_of(fields, 3) * b @ a, (left * values) @ right)


def warm_shared(read, factors, fields):
    """Hold the bases as above, and each core to the projection of the update of its layer."""
    shared_bases(read, factors)
    for group, matrices, a, b in kinds(read, factors):
        for name, matrix in zip(group, matrices, strict=True):
            near(plain.scaling_of(fields, 3) * factors[name]["core"], b.T @ matrix @ a.T)


def warm_directions(read, factors, fields):
    """Hold each layer to as many directions as it has of the largest singular values, and their sizes to these."""
    largest = torch.cat([svd(matrix, 64)[1] for matrix in read.values()]).sort(descending=True).values[9]
    counts = {name: int((svd(matrix, 64)[1] >= largest).sum()) for name, matrix in read.items()}
    assert {name: len(factors[name]["core"]) for name in factors} == {name: n for name, n in counts.items() if n}
    for name, count in counts.items():
        if count:
            a, b, core = plain.sides(factors[name], *read[name].shape)
            left, values, right = svd(read[name], count)
            near(plain.scaling_of(fields, count) * b @ core @ a, (left * values) @ right)


COLD = {"factors": cold_factors, "sums": cold_sums, "cores": cold_cores, "shared": cold_shared}
WARM = {"factors": warm_factors, "shared": warm_shared, "directions": warm_directions}
