"""Training is a plain loop of PyTorch, and a training that is killed or repeated ends with the same bytes.

The loop is in float64 and takes the batches that the model has read. Each text passes alone, with its label from the
user's file. The optimizer is AdamW, its rates rise and fall linearly, and the norm of a gradient is at most 1.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, contextmanager
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoTokenizer

from tests import reference, rows, tiny
from tests.helpers import (
    change_params,
    digests,
    edit,
    in_new_process,
    printed,
    read_json,
    read_table,
    refused,
    run,
    run_stages,
    write,
)

INIT = Path("artifacts/init")
ADAPTER = Path("artifacts/adapter")
METRICS = Path("reports/train/metrics.json")
WEIGHTS = "adapter_model.safetensors"
SIZES = {"train": 21, "validation": 8, "test": 8}
BATCH = 8  # examples; the last batch of an epoch has fewer
LENGTH = 24
RATE = 0.01
HEAD_RATE = 0.03
DECAY = 0.1
WARMUP = 0.25
EPOCHS = 2
PRICE = 5_000.0  # added to ratings, times a thousand
OWN = {"learning_rate": RATE}
STARTED = {"init": "warm_start", "init_examples": 16, "init_head_steps": 2}
METHODS = {
    "lora": ("lora", OWN),
    "sums": ("lsr", OWN),
    "cores": ("lsr", OWN | STARTED | {"rank_shape": [3], "separation_rank": 1, "train": "core"}),
    "shared": ("lsr", OWN | STARTED | {"rank_shape": [3], "separation_rank": 1, "train": "all", "share": "layers"}),
    "full": ("full", OWN),
}


class Case(NamedTuple):
    """A training of one method."""

    method: str
    task: str
    architecture: str
    class_weights: str = "none"


CASES = [
    Case("lora", "three", "roberta", "balanced"),
    Case("sums", "number", "gpt2"),  # a head without a bias
    Case("lora", "number", "distilbert"),
    Case("cores", "pairs", "bert"),
    Case("shared", "multi_label", "qwen2", "balanced"),
    Case("full", "two", "modernbert"),
]


def split_rows(sizes=SIZES):
    """Return the rows of each split."""
    splits = {}
    first = 0
    for split, count in sizes.items():
        splits[split] = [example_of(number) for number in range(first, first + count)]
        first += count
    return splits


def example_of(number):
    example = rows.example(number)
    return example | {"rating": PRICE + 1000 * example["rating"]}


def make(folder, task, architecture, sizes=SIZES, **params):
    """Make a workspace with a file of each split."""
    files = {split: f"data/{split}.csv" for split in SIZES}
    entry = {key: value for key, value in rows.ENTRIES[task].items() if key != "split"}
    entry["source"] = {"kind": "files", "files": files}
    if task == "number":
        entry["label"] = {"column": "rating", "low": PRICE, "high": PRICE + 4000}
    rows.make_workspace(folder, task, architecture, entries={task: entry}, **params)
    for split, its in split_rows(sizes).items():
        write(folder / files[split], its)
    return folder


@contextmanager
def recorded(vocabulary=tiny.VOCABULARY):
    """Record the token ids (rows, length) of each batch that a model reads to learn from it."""
    batches = []

    def record(module, inputs):
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary and torch.is_grad_enabled():
            batches.append(inputs[0].tolist())

    hook = register_module_forward_pre_hook(record)
    yield batches
    hook.remove()


class Read(NamedTuple):
    """An example as a plain model reads it."""

    inputs: dict
    row: dict


def read_alone(tokenizer, task, examples):
    """Return examples by the token ids of their texts."""
    columns = rows.ENTRIES[task]["text"]
    known = {}
    for row in examples:
        texts = [row[name] for name in columns]
        inputs = reference.encoded(tokenizer, texts, LENGTH)
        ids = inputs["input_ids"][0].tolist()
        known[tuple(ids)] = Read(inputs, row)
    assert len(known) == len(examples)
    return known


def without_padding(ids, token):
    """Return the token ids of a text in a padded batch."""
    return tuple(one for one in ids if one != token)


class Loop:
    """A plain model in float64 with the adapter of artifacts/init; its trained tensors by their names in the file."""

    def __init__(self, base, outputs):
        self.model = reference.load_alone(base, outputs=outputs).double().requires_grad_(False)
        self.fields = reference.fields_of(INIT)
        self.initial = reference.tensors_of(INIT)
        modules = [name for name, _ in self.model.named_children()]
        self.heads = [name for name in modules if name != self.model.base_model_prefix]
        if self.fields["peft_type"] == "LSR":
            self.trained = self.train_whole(self.heads) | self.train_lsr()
        elif any("lora_A" in name for name in self.initial):
            self.trained = self.train_lora()
        else:
            self.trained = self.train_whole(modules)

    def train_whole(self, modules):
        """Return the parameters of whole modules, with the values of the file."""
        reference.load_head(self.model, INIT)
        trained = {}
        for name, parameter in self.model.named_parameters():
            if name.partition(".")[0] in modules:
                trained[name] = parameter.requires_grad_()
        return trained

    def train_lora(self):
        """Let PEFT load a LoRA and the head, and return their parameters."""
        loaded = PeftModel.from_pretrained(self.model, str(INIT), is_trainable=True, autocast_adapter_dtype=False)
        self.model = loaded.double()
        names = {tensor.data_ptr(): name for name, tensor in get_peft_model_state_dict(loaded).items()}
        trained = {}
        for parameter in loaded.parameters():
            if parameter.requires_grad:
                name = names[parameter.data_ptr()]
                trained[name.removeprefix(reference.PREFIX)] = parameter
        return trained

    def train_lsr(self):
        """Add the update to the output of each layer by dense matrices, and return what of it is trained."""
        values = {}
        for name, tensor in self.initial.items():
            if reference.MARK in name:
                values[name] = nn.Parameter(tensor.double())
        for layer in reference.by_layer(values):
            self.adapt(layer, values)
        if self.fields["train"] == "core":
            return {name: value for name, value in values.items() if name.endswith("core")}
        return values

    def adapt(self, layer, values):
        shape = reference.weight_of(self.model, layer).shape

        def add(_, inputs, output):
            a, b, core = reference.sides(reference.by_layer(values)[layer], *shape)
            scaling = reference.scaling_of(self.fields, len(a))
            return output + scaling * inputs[0] @ a.T @ core.T @ b.T

        self.model.get_submodule(layer).register_forward_hook(add)

    def groups(self):
        """Yield each parameter with its rate: the head has its own, and biases and norms do not decay."""
        for name, parameter in self.trained.items():
            rate = HEAD_RATE if name.partition(".")[0] in self.heads else RATE
            if name.endswith(("factor_A2", "factor_B2")):
                rate /= len(parameter) ** 0.5  # of terms
            decays = not name.endswith("bias") and "norm" not in name.lower()
            yield {"params": [parameter], "lr": rate, "weight_decay": DECAY * decays}

    def values(self):
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def loss(self, examples, loss):
        """Return the mean loss of examples, each of which passes alone."""
        return torch.stack([loss(self.model(**one.inputs).logits[0], one.row) for one in examples]).mean()

    def fit(self, epochs, validation, loss):
        """Take a step for each batch; return the losses of steps and of validation, and the values after each epoch."""
        optimizer = torch.optim.AdamW(self.groups())
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = sum(len(batches) for batches in epochs)
        losses = []
        validations = []
        states = []
        for batches in epochs:
            for batch in batches:
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * fraction_of_rate(len(losses), steps)
                optimizer.zero_grad()
                of_step = self.loss(batch, loss)
                of_step.backward()
                nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
                optimizer.step()
                losses.append(of_step.item())
            with torch.no_grad():
                validations.append(self.loss(validation, loss).item())
            states.append(self.values())
        return losses, validations, states


def fraction_of_rate(step, steps):
    """Return the fraction of the rates in a step: they rise over some steps, and then fall to zero."""
    rising = round(WARMUP * steps)
    return step / rising if step < rising else (steps - step) / (steps - rising)


# Losses of the logits of a text, by its row in the file.


def loss_of(case, head):
    """Return the loss function of a case."""
    if case.task == "number":
        return loss_of_numbers(UnitsOfLabels(head))
    names = read_json(ADAPTER / "task.json")["labels"]
    if case.task == "multi_label":
        return loss_of_labels(names)
    return loss_of_classes(names, rows.ENTRIES[case.task]["label"]["column"], case.class_weights)


def loss_of_classes(names, column, class_weights):
    classes = [row[column] for row in split_rows()["train"]]
    weights = dict.fromkeys(names, 1.0)
    if class_weights == "balanced":
        balanced = compute_class_weight("balanced", classes=np.array(names), y=classes)
        weights = dict(zip(names, balanced, strict=True))

    def loss(logits, row):
        name = row[column]
        return weights[name] * F.cross_entropy(logits, torch.tensor(names.index(name)))

    return loss


def loss_of_labels(names):
    """Return the mean loss of labels, where texts with a label weigh as much as those without it."""
    applies = np.array([tags_of(row, names) for row in split_rows()["train"]])
    weights = [compute_class_weight("balanced", classes=np.array([0, 1]), y=column) for column in applies.T]

    def loss(logits, row):
        tags = tags_of(row, names)
        weight = [of_label[tag] for of_label, tag in zip(weights, tags, strict=True)]
        wanted = torch.tensor(tags).double()
        return F.binary_cross_entropy_with_logits(logits, wanted, weight=torch.tensor(weight))

    return loss


def tags_of(row, names):
    tags = row["tags"].split("|")
    return [int(name in tags) for name in names]


class UnitsOfLabels:
    """A label is `offset` plus `factor` times what the head learns; `deviation` is that of the labels of train."""

    def __init__(self, head):
        labels = np.array([row["rating"] for row in split_rows()["train"]])
        self.deviation = labels.std()
        if head.bias is None:
            self.offset = 0.0
            self.factor = np.sqrt(np.mean(labels**2))
        else:
            self.offset = labels.mean()
            self.factor = self.deviation

    def to_learned(self, name, value):
        """Return the value of a parameter of the head's last layer in units of what is learned."""
        return (value - self.offset * name.endswith("bias")) / self.factor

    def to_labels(self, name, value):
        return value * self.factor + self.offset * name.endswith("bias")


def loss_of_numbers(units):
    """Return the squared error in units of the variance of the labels."""

    def loss(logits, row):
        label = logits[0] * units.factor + units.offset
        return ((label - row["rating"]) / units.deviation) ** 2

    return loss


def last_layer(loop):
    """Return the last linear layer of the head, and its name."""
    layers = [(name, layer) for name, layer in loop.model.named_modules() if isinstance(layer, nn.Linear)]
    name, layer = layers[-1]
    return layer, name.removeprefix(reference.PREFIX).replace(".modules_to_save.default", "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:3]))
def test_training_is_a_plain_loop_over_texts_that_pass_alone(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    word, section = METHODS[case.method]
    train = {"epochs": EPOCHS, "batch_size": BATCH, "head_learning_rate": HEAD_RATE}
    train |= {"weight_decay": DECAY, "warmup_ratio": WARMUP, "class_weights": case.class_weights}
    params = {"adapter": word, "train": train, word: section}
    make(tmp_path, case.task, case.architecture, **params)
    run_stages(tmp_path, "tokenize", "factorize_init")
    with recorded() as batches:
        run_stages(tmp_path, "train")

    base = tmp_path / f"models/{case.architecture}"
    tokenizer = AutoTokenizer.from_pretrained(base)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    splits = split_rows()
    known = read_alone(tokenizer, case.task, splits["train"])
    read = [[known[without_padding(ids, padding)] for ids in batch] for batch in batches]
    epochs = check_epochs(read)

    outputs = len(read_json(ADAPTER / "task.json")["labels"] or [0])
    loop = Loop(base, outputs)
    head, name = last_layer(loop)
    of_head = {key: parameter for key, parameter in loop.trained.items() if key.startswith(f"{name}.")}
    units = UnitsOfLabels(head) if case.task == "number" else None
    if units:
        for key, parameter in of_head.items():
            parameter.data = units.to_learned(key, parameter.data)
    loss = loss_of(case, head)
    validation = list(read_alone(tokenizer, case.task, splits["validation"]).values())
    before = loop.values()
    losses, validations, states = loop.fit(epochs, validation, loss)
    assert curve("loss") == pytest.approx(losses, rel=1e-4)
    assert curve("validation_loss") == pytest.approx(validations, rel=1e-4)
    after = states[best_epoch() - 1]
    if units:
        for values in (before, after):
            values.update({key: units.to_labels(key, values[key]) for key in of_head})
    check_adapter(before, after, of_head)


def check_epochs(read):
    """Hold what was read to the rows of train: each once an epoch, in another order; return the batches by epoch."""
    metrics = read_json(METRICS)
    each = ceil(SIZES["train"] / BATCH)
    assert metrics["steps"] == len(read) == EPOCHS * each
    assert metrics["read"] == EPOCHS * SIZES["train"]
    epochs = [read[first : first + each] for first in range(0, len(read), each)]
    orders = []
    for batches in epochs:
        order = [one.row["at"] for batch in batches for one in batch]
        assert sorted(order) == list(range(SIZES["train"]))
        assert sorted(map(len, batches)) == sorted([SIZES["train"] % BATCH, *[BATCH] * (each - 1)])
        orders.append(order)
    assert orders[0] != orders[1]
    return epochs


def curve(name):
    return [float(row[name]) for row in read_table(Path(f"reports/train/curves/{name}.csv"))]


def best_epoch():
    """Return the epoch that is kept, which has the best score of validation."""
    metrics = read_json(METRICS)
    scores = curve("validation_score")
    assert metrics["best_score"] == max(scores) == scores[metrics["best_epoch"] - 1]
    return metrics["best_epoch"]


def check_adapter(before, after, of_head):
    """Hold the trained adapter to values of the loop; a temperature divides what the last layer has learned."""
    actual = reference.tensors_of(ADAPTER)
    temperatures = torch.tensor(read_json(ADAPTER / "task.json").get("temperatures", [1.0]))
    assert actual.keys() >= after.keys()
    for name, expected in after.items():
        found = actual[name].double()
        if name in of_head:
            found *= temperatures.reshape(-1, *[1] * (found.dim() - 1))
        moved = (expected - before[name]).norm()
        assert moved > 1e-6
        assert (found - expected).norm() < 1e-3 * moved, name
    initial = reference.tensors_of(INIT)
    assert initial.keys() == actual.keys()
    for name in actual.keys() - after.keys():
        assert torch.equal(actual[name], initial[name])


# Reports.


def test_the_report_of_tokens_is_that_of_plain_lengths(tmp_path):
    folder = make(tmp_path, "pairs", "bert", tokenize={"max_length": LENGTH})
    run_stages(folder, "tokenize")
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    parts = {row["part"]: row for row in read_table(folder / "reports/tokenize/splits.csv")}
    lengths = {}
    for split, examples in split_rows().items():
        texts = [(row["text"], row["other"]) for row in examples]
        lengths[split] = [len(tokenizer(*pair).input_ids) for pair in texts]
        found = parts[split]
        assert int(found["rows"]) == SIZES[split]
        assert int(found["tokens_max"]) == max(lengths[split])
        assert int(found["tokens_p50"]) == np.percentile(lengths[split], 50, method="higher")
        assert float(found["truncated_share"]) == pytest.approx(np.mean(np.array(lengths[split]) > LENGTH), abs=1e-5)
    bins = read_table(folder / "reports/tokenize/lengths.csv")
    starts = [int(row["length"]) for row in bins]
    counts, _ = np.histogram(lengths["train"], [*starts, starts[-1] + starts[1]])
    assert [int(row["rows"]) for row in bins] == counts.tolist()


@pytest.mark.parametrize("init", ["gradient", "warm_start"])
def test_the_report_of_an_initialization_counts_what_it_reads(tmp_path, init):
    folder = make(tmp_path, "three", "bert", lsr=STARTED | {"init": init})
    run_stages(folder, "tokenize")
    with recorded() as batches:
        run_stages(folder, "factorize_init")
    metrics = read_json(folder / "reports/factorize_init/metrics.json")
    assert metrics["start_read"] == sum(map(len, batches)) > 0
    assert metrics["details"][0]["start_batches"] == len(batches)
    energies = [float(row["energy"]) for row in read_table(folder / "reports/factorize_init/start.csv")]
    assert metrics["energy"] == pytest.approx(np.mean(energies), abs=1e-5)


# Bytes.

QUICK = {"evaluate": {"regression_baseline": "none"}}
LONG_EPOCHS = 16  # enough that a kill comes before the end
LONG = QUICK | {"lsr": {"dropout": 0.1}, "train": {"epochs": LONG_EPOCHS}}
DROPOUT = QUICK | {"lsr": {"dropout": 0.1}, "train": {"epochs": 3}}


def outputs_of_training():
    return digests(ADAPTER, Path("reports/train"))


def test_the_same_inputs_give_the_same_bytes(copied):
    folder = copied("three", "roberta", lsr=STARTED | {"dropout": 0.1}, **QUICK)
    first = digests(Path("artifacts"), Path("reports"))
    run_stages(folder)
    assert digests(Path("artifacts"), Path("reports")) == first


def checkpoints():
    """Return the folders of complete checkpoints."""
    return [path.parent for path in Path(".checkpoints").glob("*/checkpoint-*/trainer_state.json")]


def train_and_kill(number):
    """Train in a process of its own, and kill it when it has so many checkpoints or a later one."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"}  # as this process: with more threads, sums have another order
    process = subprocess.Popen([sys.executable, "-m", "stages.train"], env=variables)
    while not any(int(folder.name.partition("-")[2]) >= number for folder in checkpoints()):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("epochs", [[3], pytest.param([1, 5], marks=pytest.mark.nightly)], ids=str)
def test_a_training_that_is_killed_goes_on_and_ends_with_the_same_bytes(copied, epochs):
    folder = copied("three", "roberta", **LONG)
    undisturbed = outputs_of_training()
    steps = read_json(METRICS)["steps"] // LONG_EPOCHS
    for epoch in epochs:
        train_and_kill(epoch * steps)
        assert checkpoints()
    with recorded() as batches:
        run_stages(folder, "train")
    assert 0 < len(batches) <= (LONG_EPOCHS - epochs[-1] + 1) * steps  # the last checkpoint may not have been complete
    assert outputs_of_training() == undisturbed
    assert not checkpoints()


@pytest.mark.nightly
def test_a_checkpoint_is_of_use_to_the_same_training_alone(copied):
    folder = copied("three", "roberta", **LONG)
    undisturbed = outputs_of_training()
    change_params(folder, seed=1)
    run_stages(folder, "train")
    other = outputs_of_training()
    assert other != undisturbed
    change_params(folder, seed=0)
    train_and_kill(1)
    change_params(folder, seed=1)
    run_stages(folder, "train")
    assert outputs_of_training() == other


@pytest.mark.nightly
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_two_processes_train_what_one_does_but_for_rounding(tmp_path, monkeypatch, class_weights):
    monkeypatch.chdir(tmp_path)
    train = {"epochs": 2, "batch_size": 6, "class_weights": class_weights}
    folder = make(tmp_path, "three", "bert", adapter="lora", train=train)
    write(folder / "data/train.csv", split_rows()["train"][:18])  # whole batches, as a smaller one is filled up
    run_stages(folder, "tokenize", "factorize_init", "train")
    alone = load_file(ADAPTER / WEIGHTS)
    metrics = read_json(METRICS)
    change_params(folder, train={"processes": 2})
    in_new_process(folder, "-m", "stages.train", OMP_NUM_THREADS="1")
    found = load_file(ADAPTER / WEIGHTS)
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
    again = read_json(METRICS)
    assert (again["steps"], again["read"]) == (metrics["steps"], metrics["read"])


@pytest.mark.nightly
def test_two_processes_that_are_killed_go_on_and_end_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = {"epochs": 6, "batch_size": 6, "processes": 2}
    folder = make(tmp_path, "three", "bert", lsr={"dropout": 0.1}, train=train)
    run_stages(folder, "tokenize", "factorize_init")
    in_new_process(folder, "-m", "stages.train", OMP_NUM_THREADS="1")
    undisturbed = outputs_of_training()
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "stages.train"], env=variables, start_new_session=True)
    while not checkpoints():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    in_new_process(folder, "-m", "stages.train", OMP_NUM_THREADS="1")
    assert outputs_of_training() == undisturbed


def test_a_tracker_writes_into_runs_and_changes_no_byte(copied, monkeypatch):
    folder = copied("three", "roberta", **DROPOUT)
    before = outputs_of_training()
    monkeypatch.setattr(os, "environ", os.environ.copy())
    change_params(folder, train={"report_to": ["tensorboard"]})
    said = printed("stages.train")
    assert re.findall(r"^ +(\d+) \|", said, re.MULTILINE) == ["1", "2", "3"]  # epochs
    assert outputs_of_training() == before
    assert list((folder / "runs").rglob("events.*"))


# How long it trains.


def test_patience_ends_training_after_epochs_without_a_better_score(copied):
    train = {"epochs": 8, "head_learning_rate": 0.5}
    folder = copied("three", "roberta", lsr={"learning_rate": 0.5}, train=train, **QUICK)
    scores = curve("validation_score")
    best = 0
    stop = 1
    while stop < len(scores) and stop - best <= 2:
        best = stop if scores[stop] > scores[best] else best
        stop += 1
    assert stop < len(scores)  # or this proves nothing
    change_params(folder, train={"patience": 2})
    run_stages(folder, "train")
    assert curve("validation_score") == scores[:stop]


def test_with_tenants_epochs_are_as_many_as_make_96_steps(trained):
    folder = trained("tenants", "bert", train={"epochs": "auto", "batch_size": 12}, **QUICK)
    [train] = [row for row in read_table(folder / "reports/tokenize/splits.csv") if row["part"] == "train"]
    steps = ceil(int(train["rows"]) / 12)
    epochs = max(4, ceil(96 / steps))
    metrics = read_json(folder / METRICS)
    assert metrics["steps"] == epochs * steps
    assert metrics["read"] == epochs * int(train["rows"])


# Another adapter to begin with.


@pytest.mark.parametrize("kind", ["LSR", "LORA"])
def test_training_goes_on_from_the_update_and_the_head_of_another_adapter(copied, kind):
    form = {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "all", "init": "principal"}
    folder = copied("three", "roberta", lsr=form, **QUICK)
    other = folder / "models/other"
    base = folder / "models/roberta"
    model = reference.load_alone(base, ADAPTER, 3)
    expected = tiny.logits(model)
    if kind == "LORA":
        printed("lsr", "export", ADAPTER, "--to", "lora", "-o", other)
    else:
        shutil.copytree(ADAPTER, other)
    change_params(folder, lsr={"init": "models/other"})
    run_stages(folder, "factorize_init")
    found = tiny.logits(reference.load_alone(base, INIT, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    change_params(folder, data="two")
    run_stages(folder, "tokenize")
    refused("stages.factorize_init", says="models/other")


# Numbers with many digits.


def test_large_numbers_on_a_short_scale_keep_their_digits(trained):
    offset = 350_000.0
    examples = [row | {"rating": offset + 10 * round(row["rating"], 1)} for row in rows.examples()]
    label = {"column": "rating", "low": offset, "high": offset + 40}
    entry = rows.ENTRIES["number"] | {"label": label}
    folder = trained("number", "bert", rows=examples, entries={"number": entry}, train={"epochs": 3}, **QUICK)
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    by_text = {row["text"]: row["rating"] for row in examples}
    assert [float(row["actual"]) for row in scored] == [by_text[row["text"]] for row in scored]
    with chdir(folder):
        answers = read_table(printed("pipeline.predict", *(row["text"] for row in scored)))
    predicted = [float(row["predicted"]) for row in scored]
    assert predicted == pytest.approx([float(row["number"]) for row in answers], abs=0.05)  # digits of float32
    assert len(set(predicted)) > len(predicted) / 2
    assert np.abs(np.array(predicted) - offset - 20).max() < 40


def test_numbers_far_from_zero_are_learned_in_bf16_as_in_fp32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path, "number", "bert", train={"epochs": 2})
    run_stages(folder, "tokenize", "factorize_init", "train")
    precise = curve("loss")
    change_params(folder, train={"precision": "bf16"})
    run_stages(folder, "train")
    assert curve("loss") == pytest.approx(precise, rel=0.05)
    assert curve("loss") != precise


# Thresholds of labels.


@pytest.mark.parametrize("count", [40, 12])
def test_thresholds_have_the_best_f1_on_validation_and_rare_labels_share_one(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    sizes = {"train": 24, "validation": count, "test": 8}
    folder = make(tmp_path, "multi_label", "bert", sizes, train={"epochs": 3})
    run_stages(folder, "tokenize", "factorize_init", "train")
    task = read_json(ADAPTER / "task.json")
    model = reference.load_alone(folder / "models/bert", ADAPTER, 3)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    examples = split_rows(sizes)["validation"]
    texts = [(row["text"],) for row in examples]
    found = reference.logits_alone(model, tokenizer, texts, LENGTH).sigmoid().numpy()
    actual = np.array([tags_of(row, task["labels"]) for row in examples])
    if count < 20:  # no label has ten texts
        assert len(set(task["thresholds"])) == 1
        actual = actual.reshape(-1, 1)
        found = found.reshape(-1, 1)
    for threshold, truth, values in zip(task["thresholds"], actual.T, found.T, strict=False):
        best = max(f1_score(truth, values >= tried) for tried in np.arange(1, 100) / 100)
        assert f1_score(truth, values >= threshold) == pytest.approx(best)


# Accidents.


@pytest.mark.parametrize(
    ("task", "train"), [("three", {"precision": "fp16"}), ("number", {"class_weights": "balanced"})]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works with a GPU")
def test_what_cannot_be_trained_is_rejected(tmp_path, monkeypatch, task, train):
    monkeypatch.chdir(tmp_path)
    run_stages(make(tmp_path, task, "roberta", train=train), "tokenize", "factorize_init")
    [option] = train
    refused("stages.train", says=option)


def test_an_adapter_of_another_base_model_is_not_evaluated(copied):
    folder = copied("three", "roberta", **DROPOUT)
    shutil.rmtree(folder / "models/roberta")
    tiny.save_base(folder / "models/roberta", "roberta", hidden_size=32)
    run_stages(folder, "tokenize")
    refused("stages.evaluate", says=str(ADAPTER))


def spoil(folder, name, value):
    """Fill a tensor of the base model with a value, and tokenize again."""
    path = folder / "models/roberta/model.safetensors"
    spoiled = torch.full_like(load_file(path)[name], value)
    edit(path, **{name: spoiled})
    run_stages(folder, "tokenize")


def test_a_training_that_diverges_is_rejected_and_leaves_no_adapter(copied):
    folder = copied("three", "roberta", **DROPOUT)
    shutil.rmtree(ADAPTER)
    spoil(folder, "embeddings.LayerNorm.weight", 3e38)
    run_stages(folder, "factorize_init")
    refused("stages.train", says="learning rate")
    assert not ADAPTER.exists()


@pytest.mark.parametrize(
    ("stage", "lacking"),
    [
        ("factorize_init", "tokens/train.arrow"),
        ("train", "tokens/train.arrow"),
        ("train", "init"),
        ("evaluate", "adapter"),
    ],
)
def test_a_stage_without_the_one_before_is_rejected(copied, stage, lacking):
    folder = copied("three", "roberta", **DROPOUT)
    change_params(folder, lsr={"init": "gradient"})  # which reads examples
    path = Path("artifacts") / lacking
    path.rename("elsewhere")
    refused(f"stages.{stage}", says=str(path))


def test_weights_that_are_not_finite_are_rejected(copied):
    folder = copied("three", "roberta", **DROPOUT)
    change_params(folder, lsr={"init": "principal"})
    layer = "encoder.layer.1.attention.self.value"
    spoil(folder, f"{layer}.weight", np.nan)
    ended = run("stages.factorize_init")
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert layer in ended.err


@pytest.mark.parametrize("stage", ["tokenize", "factorize_init", "train", "evaluate"])
def test_a_full_disk_ends_a_stage_with_its_outputs_as_they_were(copied, stage):
    copied("three", "roberta", **DROPOUT)
    before = digests(Path("artifacts"), Path("reports"))
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes of a file, as if no more were left
    try:
        ended = run(f"stages.{stage}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert ended.status in (1, 2)
    assert ended.err.splitlines()[-1].endswith("File too large")
    assert digests(Path("artifacts"), Path("reports")) == before
