"""The subjects of the matrix: PEFT methods with configurations on tiny models, and what the probes do with them."""

import copy
import re
from dataclasses import dataclass, field

import torch
from peft import LoKrConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from lsr import LsrConfig
from tests.tiny_models import LABELS, tiny, tokens

METHODS = {  # name: its configuration, fields of a first and of a second adapter
    "LSR": (
        LsrConfig,
        {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0},
        {"rank_shape": (2, 1, 2), "separation_rank": 2, "alpha": 5, "seed": 1},
    ),
    "LoRA": (LoraConfig, {"r": 4, "lora_alpha": 7}, {"r": 2, "lora_alpha": 5}),
    "LoKr": (LoKrConfig, {"r": 4, "alpha": 7}, {"r": 2, "alpha": 5}),
    "VeRA": (VeraConfig, {"r": 16}, {"r": 16}),
}
TARGETS = {
    "bert": ["query", "value"],
    "bert-padded": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "gpt2-causal": ["c_attn"],
    "llama-causal": ["q_proj", "v_proj"],
}
HEADS = {"distilbert": ("pre_classifier", "classifier"), "gpt2": ("score",), "gpt2-causal": (), "llama-causal": ()}
HEADLESS = {"task_type": None}  # fields of an adapter beside which nothing is trained whole
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Subject:
    """One configuration of a method on one tiny model."""

    model: str
    fields: dict = field(default_factory=dict)
    heads: tuple[str, ...] | None = None  # None: those of the model
    layers: int | None = None  # how many it should adapt, where a test says so
    method: str = "LSR"

    @property
    def trained_whole(self):
        """The names of modules that train whole."""
        return HEADS.get(self.model, ("classifier",)) if self.heads is None else self.heads

    @property
    def folds(self):
        """Whether what the adapter starts at is subtracted from the base weight."""
        return self.fields.get("init_weights") in ("principal", "minor", "cp")

    @property
    def is_causal(self):
        return self.model.endswith("-causal")

    def config(self, **fields):
        """The configuration of the first adapter."""
        kind, usual, _ = METHODS[self.method]
        task = "CAUSAL_LM" if self.is_causal else "SEQ_CLS"
        targets = {} if self.method == "LSR" else {"target_modules": TARGETS[self.model]}  # PEFT's tables differ
        return kind(**copy.deepcopy({"task_type": task, **targets, **usual, **self.fields, **fields}))

    def second(self, **fields):
        """The configuration of a second adapter, of another size where the method allows it."""
        return Subject(self.model, METHODS[self.method][2], method=self.method).config(**fields)

    def fresh(self, **fields):
        """The model with a new adapter."""
        with torch.random.fork_rng():
            torch.manual_seed(0)  # not every method has a seed of its own
            return get_peft_model(tiny(self.model), self.config(**fields)).eval()

    def stirred(self, **fields):
        """The model with an adapter in which nothing is zero or as it started."""
        return stir(self.fresh(**fields))

    def with_two(self, **fields):
        """The model with two stirred adapters, the first active."""
        model = self.stirred(**fields)
        model.add_adapter("second", self.second(**fields))
        model.set_adapter("second")
        stir(model, seed=1)
        model.set_adapter("default")
        return model.eval()


def stir(model, seed=0):
    """Move every parameter that trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(model):
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def loss(model):
    batch = tokens()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    labels = (
        batch["input_ids"] if type(base).__name__.endswith(("LMHeadModel", "ForCausalLM")) else torch.arange(4) % LABELS
    )
    return model(**batch, labels=labels).loss


def train(model, steps=2, learning_rate=0.01):
    """Fit the fixed labels; return the losses, and for each trainable tensor whether it ever had a gradient."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=learning_rate)
    losses, moved = [], dict.fromkeys(trainable(model), False)
    for _ in range(steps):
        now = loss(model)
        optimizer.zero_grad()
        now.backward()
        for name, parameter in trainable(model).items():
            moved[name] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        losses.append(now.item())
    model.eval()
    return losses, moved


def check(holds, reason):
    """Check that something holds.

    Raises:
        AssertionError: if not, with the reason.
    """
    if not holds:
        raise AssertionError(reason)


def same(one, other, reason):
    check(torch.equal(one, other), reason)


def near(one, other, reason, tolerance=TOLERANCE):
    check(torch.allclose(one, other, atol=tolerance, rtol=tolerance), reason)


def far(one, other):
    """A probe that compares equal things proves nothing."""
    check(not torch.allclose(one, other, atol=1e-4), "the adapter does nothing here")


def is_factor(name):
    """Whether a parameter or buffer belongs to an adapter's layer."""
    return re.search(r"\.(lsr|lora|lokr|vera)_", name) is not None


def base_weights(model):
    """Everything that the base model has, by its name there, without heads."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value.clone()
        for name, value in model.state_dict().items()
        if not is_factor(name) and "modules_to_save" not in name
    }


def same_base(before, model, reason):
    after = base_weights(model)
    for name, value in before.items():
        same(after[name], value, reason)


CASES = {  # LSR's configurations
    "two factors": Subject("bert", layers=4),
    "three factors": Subject("bert", {"rank_shape": (2, 2, 2)}, layers=4),
    "alpha is the rank": Subject("roberta", {"alpha": 4}, layers=4),
    "dropout": Subject("distilbert", {"dropout": 0.3}, layers=4),
    "row space": Subject("roberta", {"init_weights": "row_space"}, layers=4),
    "row space, three factors": Subject("bert", {"init_weights": "row_space", "rank_shape": (2, 2, 2)}, layers=4),
    "principal": Subject("bert", {"init_weights": "principal"}, layers=4),
    "principal, three factors": Subject("bert", {"init_weights": "principal", "rank_shape": (2, 2, 2)}, layers=4),
    "minor, padded": Subject("bert-padded", {"init_weights": "minor"}, layers=4),
    "cp, transposed": Subject("gpt2", {"init_weights": "cp"}, layers=2),
    "only the first trains": Subject("bert", {"train": "first"}, layers=4),
    "only the first trains, row space": Subject("roberta", {"init_weights": "row_space", "train": "first"}, layers=4),
    "only the first trains, folded": Subject("bert", {"init_weights": "principal", "train": "first"}, layers=4),
    "no seed": Subject("bert", {"seed": None}, layers=4),
    "padded width": Subject(
        "bert-padded", {"target_modules": ["query", "intermediate.dense", "attention.output.dense"]}, layers=6
    ),
    "own shapes": Subject("bert", {"in_shape": (5, 5), "out_shape": (2, 13)}, layers=4),
    "patterns": Subject(
        "bert",
        {
            "target_modules": ["query", "key", "value"],
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1, 1)},
            "separation_rank_pattern": {"key": 1},
            "alpha_pattern": {"0.attention.self.query": 3},
        },
        layers=6,
    ),
    "all linear": Subject("bert", {"target_modules": "all-linear"}, layers=13),
    "regular expression": Subject("roberta", {"target_modules": r".*layer\.1\..*\.(query|value)"}, layers=2),
    "excluded": Subject("bert", {"exclude_modules": ["0.attention.self.value"]}, layers=3),
    "one layer": Subject("bert", {"target_modules": ["query", "value"], "layers_to_transform": [1]}, layers=2),
    "pattern of layers": Subject(
        "gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}, layers=1
    ),
    "biases of the adapted": Subject("bert", {"bias": "lsr_only"}, layers=4),
    "all biases": Subject("bert", {"bias": "all"}, layers=4),
    "more saved whole": Subject("bert", {"modules_to_save": ["pooler"]}, ("classifier", "pooler"), layers=4),
    "transposed weights": Subject("gpt2", {"target_modules": "all-linear"}, layers=8),
    "a language model": Subject("gpt2-causal", layers=2),
    "grouped queries": Subject("llama-causal", layers=4),
}
