"""Training is a plain loop of PyTorch: the same losses at each step, and the same adapter and head at the end.

The loop takes the batches that the Trainer took, each of whose texts passes alone in float64, with labels from the file
of the user. Its optimizer is AdamW, its rates rise and fall linearly, and the norm of a step's gradient is at most 1.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.training import run as training
from tests import kit, workspace
from tests.kit import table
from tests.references import models, plain, texts
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, report, run

LENGTH = 24
RATE = 0.01
HEAD_RATE = 0.03
DECAY = 0.1
WARMUP = 0.25
EPOCHS = 2
EXAMPLES = 60
OWN = {"learning_rate": RATE}
STARTED = {"init": "warm_start", "init_examples": 16, "init_head_steps": 2}
METHODS = {
    "balanced": ("lora", OWN),  # a LoRA in whose loss all classes weigh the same
    "sums": ("lsr", OWN | {"rank_shape": [2, 2], "separation_rank": 2}),
    "cores": ("lsr", OWN | {"rank_shape": [3], "separation_rank": 1, "train": "core"} | STARTED),
    "shared": ("lsr", OWN | {"rank_shape": [3], "separation_rank": 1, "train": "all", "share": "layers"} | STARTED),
    "full": ("full", OWN),
}
CASES = [  # the method, labels, the architecture and its dtype
    ("balanced", "three", "roberta", torch.float32),
    ("sums", "number", "gpt2", torch.float32),
    ("cores", "pairs", "bert", torch.bfloat16),
    ("shared", "multi_label", "qwen2", torch.float32),
    ("full", "two", "modernbert", torch.bfloat16),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with the texts, in which nothing has run."""
    changes = {
        "epochs": EPOCHS,
        "batch_size": 8,
        "head_learning_rate": HEAD_RATE,
        "weight_decay": DECAY,
        "warmup_ratio": WARMUP,
    }
    folder = workspace.make(
        tmp_path_factory.mktemp("training"), texts.ROWS, tokenize={"max_length": LENGTH}, train=changes
    )
    kit.write(folder / texts.FILE, texts.examples(EXAMPLES))
    return folder


@pytest.fixture
def go(world, monkeypatch):
    """A function that trains, and returns the checkpoint's folder and the token ids of each batch."""
    usual = (world / "params.yaml").read_bytes()
    monkeypatch.chdir(world)
    batches = []
    real = training.trainer_of

    def recording(collate):
        def collated(features):
            batches.append([tuple(one["input_ids"]) for one in features])
            return collate(features)

        return collated

    def stages(method, labels, architecture, dtype, *, refit=False):
        folder = Path(f"models/{architecture}-{dtype}")
        if not folder.exists():
            models.save(folder, architecture, dtype)
            kit.edit(folder / "config.json", without_dropout)
        word, section = METHODS[method]
        training_values = {"class_weights": "balanced" if method == "balanced" else "none", "refit": refit}
        workspace.change(data=labels, model=str(folder), adapter=word, train=training_values, **{word: section})
        run(TOKENIZE, FACTORIZE)
        monkeypatch.setattr(
            training,
            "trainer_of",
            lambda view, task, model, splits, collate, *others, **changes: real(
                view, task, model, splits, recording(collate), *others, **changes
            ),
        )
        run(TRAIN)
        return folder, batches

    yield stages
    (world / "params.yaml").write_bytes(usual)


def without_dropout(config):
    return {name: 0.0 if "drop" in name else value for name, value in config.items()}


class Loop:
    """A plain model in float64 with the adapter of artifacts/init; what of it trains, by its name in the file."""

    def __init__(self, folder, labels):
        outputs = len(texts.ROWS[labels]["label"].get("names", [0]))
        self.model = plain.base_model(folder, num_labels=outputs).double().requires_grad_(False)
        self.fields = plain.fields_of(artifacts.INIT)
        self.units = None
        children = [name for name, _ in self.model.named_children()]
        self.heads = [name for name in children if name != self.model.base_model_prefix]
        if self.fields["peft_type"] == "LSR":
            self.trained = self.whole(self.heads) | self.with_lsr()
        elif "lora_A" in "".join(plain.tensors_of(artifacts.INIT)):
            self.trained = self.with_lora()
        else:  # full fine-tuning
            self.trained = self.whole(children)
        if labels == "number":
            [head] = [layer for name, layer in self.model.named_modules() if name == "score"]
            self.units = plain.LabelUnits.of(tokens.load_tokens("train")["label"][:], head)
            self.units.standardize(head)

    def whole(self, modules):
        """Return the parameters of modules of the base model, with the values of the file."""
        plain.load_head(self.model, artifacts.INIT)
        named = dict(self.model.named_parameters())
        return {name: one.requires_grad_() for name, one in named.items() if name.partition(".")[0] in modules}

    def with_lora(self):
        """Let PEFT load a LoRA and the head, and return their parameters."""
        folder = str(artifacts.INIT)
        self.model = PeftModel.from_pretrained(self.model, folder, is_trainable=True, autocast_adapter_dtype=False)
        self.model.double()
        names = {tensor.data_ptr(): name for name, tensor in get_peft_model_state_dict(self.model).items()}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return {names[parameter.data_ptr()].removeprefix(plain.PREFIX): parameter for parameter in trained}

    def with_lsr(self):
        """Add alpha / r * B R A x to the output of each layer by dense matrices, and return what of them trains."""
        stored = {name: tensor for name, tensor in plain.tensors_of(artifacts.INIT).items() if plain.MARK in name}
        values = {name: nn.Parameter(tensor.double()) for name, tensor in stored.items()}

        def add_to(layer):
            shape = plain.weight_of(self.model, layer).shape

            def add(_, inputs, output):
                a, b, core = plain.sides(plain.by_layer(values)[layer], *shape)
                return output + plain.scaling_of(self.fields, len(a)) * inputs[0] @ a.T @ core.T @ b.T

            self.model.get_submodule(layer).register_forward_hook(add)

        for layer in plain.factors_of(artifacts.INIT):
            add_to(layer)
        cores_alone = self.fields["train"] == "core"
        return {name: value for name, value in values.items() if name.endswith("core") or not cores_alone}

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
        """Return the mean loss over examples, each of which passes alone."""
        return torch.stack([loss(self.model(**inputs).logits[0], example) for inputs, example in examples]).mean()

    def fit(self, epochs, loss, steps=None):
        """Take a step for each batch; return the losses of steps and of validation, and the values after each epoch.

        The rates are zero after `steps`, which are those of the epochs if not given.
        """
        optimizer = torch.optim.AdamW(self.groups())
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = steps or sum(len(batches) for batches, _ in epochs)
        losses = []
        validations = []
        states = []
        for batches, validation in epochs:
            for batch in batches:
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * share(len(losses), steps)
                optimizer.zero_grad()
                of_step = self.loss(batch, loss)
                of_step.backward()
                nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
                optimizer.step()
                losses.append(of_step.item())
            with torch.no_grad():
                validations.append(self.loss(validation, loss).item() if validation else None)
            states.append(self.values())
        return losses, validations, states


def share(step, steps):
    """Return the share of the rates in a step: they rise over some steps, and then fall to zero."""
    rising = round(WARMUP * steps)
    return step / rising if step < rising else (steps - step) / (steps - rising)


def of_class(column):
    return lambda logits, example, names: F.cross_entropy(logits, torch.tensor(names.index(example[column])))


def of_several(logits, example, names):
    applies = torch.tensor([float(name in example["tags"].split("|")) for name in names]).double()
    return F.binary_cross_entropy_with_logits(logits, applies)


LOSSES = {  # of the logits of a text, by the names or the number that the file has for it
    "two": of_class("weather"),
    "three": of_class("size"),
    "pairs": of_class("weather"),
    "multi_label": of_several,
}


def class_weights(epochs):
    """Return the weight of each size by scikit-learn, for the texts of an epoch."""
    sizes = [example["size"] for batch in epochs[0][0] for _, example in batch]
    names = np.unique(sizes)
    return dict(zip(names, compute_class_weight("balanced", classes=names, y=sizes), strict=True))


def inputs_and_examples(collated, folder, labels):
    """Return the inputs and the example of each text of batches."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = texts.ROWS[labels]["text"]
    known = {}
    for example in texts.examples(EXAMPLES):
        inputs = plain.encoded(tokenizer, [example[name] for name in columns], LENGTH)
        known[tuple(inputs["input_ids"][0].tolist())] = inputs, example
    assert len(known) == EXAMPLES
    return [[known[ids] for ids in batch] for batch in collated]


def read_by_epoch(collated, folder, labels):
    """Return for each epoch the batches that were trained on, and what was validated on, as inputs and examples."""
    metrics = report(artifacts.TRAIN_METRICS)
    steps = metrics["steps"] // EPOCHS
    of_epoch = len(collated) // EPOCHS
    batches = inputs_and_examples(collated, folder, labels)
    epochs = [batches[start : start + of_epoch] for start in range(0, len(batches), of_epoch)]
    assert sum(len(batch) for epoch in epochs for batch in epoch[:steps]) == metrics["read"]
    return [(epoch[:steps], [one for batch in epoch[steps:] for one in batch]) for epoch in epochs]


@pytest.mark.parametrize(
    ("method", "labels", "architecture", "dtype"),
    CASES,
    ids=["-".join((*case[:3], str(case[3]).removeprefix("torch."))) for case in CASES],
)
def test_training_is_a_plain_loop_over_texts_that_pass_alone(go, method, labels, architecture, dtype):
    folder, collated = go(method, labels, architecture, dtype)
    loop = Loop(folder, labels)
    first = loop.values()
    epochs = read_by_epoch(collated, folder, labels)
    losses, validations, states = loop.fit(epochs, loss_of(loop, method, labels, epochs))
    assert column("loss") == pytest.approx(losses, rel=1e-4)
    assert column("validation_loss") == pytest.approx(validations, rel=1e-4)
    check_adapter(loop, first, states[report(artifacts.TRAIN_METRICS)["best_epoch"] - 1])


@pytest.mark.parametrize(
    ("method", "labels", "architecture"),
    [("balanced", "three", "roberta"), ("sums", "number", "gpt2"), ("shared", "multi_label", "qwen2")],
)
def test_a_refit_is_a_plain_loop_over_train_and_validation_with_what_validation_chose(go, method, labels, architecture):
    folder, _ = go(method, labels, architecture, torch.float32)
    chosen = report(artifacts.ADAPTER / "task.json")
    alone = report(artifacts.TRAIN_METRICS)
    folder, collated = go(method, labels, architecture, torch.float32, refit=True)
    assert report(artifacts.ADAPTER / "task.json") == chosen  # the same temperatures and thresholds
    metrics = report(artifacts.TRAIN_METRICS)
    counts = [len(tokens.load_tokens(split)) for split in ("train", "validation")]
    each = -(-sum(counts) // 8)
    best = metrics["best_epoch"]
    steps = best * each
    assert (metrics["steps"], metrics["read"]) == (alone["steps"] + steps, alone["read"] + best * sum(counts))
    assert metrics["best_score"] == alone["best_score"]
    batches = inputs_and_examples(collated, folder, labels)[-steps:]
    epochs = [(batches[start : start + each], []) for start in range(0, steps, each)]
    for read, _ in epochs:
        texts_read = {example["text"] for batch in read for _, example in batch}
        assert (len(texts_read), sum(map(len, read))) == (sum(counts), sum(counts))
    loop = Loop(folder, labels)
    first = loop.values()
    _, _, states = loop.fit(epochs, loss_of(loop, method, labels, epochs), EPOCHS * each)
    check_adapter(loop, first, states[-1])


def loss_of(loop, method, labels, epochs):
    """Return the function that computes the loss of a text from its logits and its example."""
    names = report(artifacts.ADAPTER / "task.json")["labels"]
    weights = class_weights(epochs) if method == "balanced" else {}

    def loss(logits, example):
        if loop.units is not None:
            return loop.units.loss(logits[0], example["rating"])
        return weights.get(example["size"], 1.0) * LOSSES[labels](logits, example, names)

    return loss


def check_adapter(loop, first, best):
    """Compare the values of artifacts/adapter with those of a loop, which began with the values `first`."""
    actual = before_calibration(plain.tensors_of(artifacts.ADAPTER), loop.heads)
    if loop.units is not None:
        for values in (first, best):
            values["score.weight"] = loop.units.label("score.weight", values["score.weight"])
    assert actual.keys() >= best.keys()
    for name, expected in best.items():
        moved = (expected - first[name]).norm()
        if name.endswith("k_lin.bias"):  # its gradient is zero, and AdamW makes steps of what rounding leaves of it
            assert moved < 1e-9
        else:
            assert moved > 1e-6
            assert (actual[name].double() - expected).norm() < 1e-3 * moved, name


def before_calibration(tensors, heads):
    """Return tensors with those of the head's last layer times the temperatures by which they were divided."""
    task = report(artifacts.ADAPTER / "task.json")
    temperatures = torch.tensor(task.get("temperatures", [1.0]))
    outputs = len(task["labels"] or [0])
    before = dict(tensors)
    for name, tensor in tensors.items():
        if name.partition(".")[0] in heads and len(tensor) == outputs:
            before[name] = tensor * temperatures.reshape(-1, *[1] * (tensor.dim() - 1))
    return before


def column(name):
    return [float(line[name]) for line in table(artifacts.TRAIN_LOSS.with_name(f"{name}.csv"))]
