"""Adapters of PEFT methods on tiny models: their configurations, and models that have them."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model

from lsr import LsrConfig
from tests.old_tiny.models import Fields, tiny
from tests.old_tiny.training import stir

METHODS: dict[str, tuple[type[PeftConfig], Fields, Fields]] = {  # configuration, fields of a first and a second adapter
    "LSR": (
        LsrConfig,
        {"rank_shape": (2, 2), "separation_rank": 3, "alpha": 7, "seed": 0},
        {"rank_shape": (2, 1), "separation_rank": 2, "alpha": 5, "seed": 1},
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


@dataclass(frozen=True)
class Subject:
    """One configuration of a method on one tiny model."""

    model: str
    fields: Fields = field(default_factory=dict)
    heads: tuple[str, ...] | None = None  # None: those of the model
    layers: int | None = None  # how many it should adapt, if a test checks that
    method: str = "LSR"
    beside: Fields = field(default_factory=dict)  # of a second adapter

    @property
    def trained_whole(self) -> tuple[str, ...]:
        """The names of modules that are trained in full."""
        return HEADS.get(self.model, ("classifier",)) if self.heads is None else self.heads

    @property
    def is_causal(self) -> bool:
        """Whether the model is a language model."""
        return self.model.endswith("-causal")

    def config(self, **fields: Any) -> PeftConfig:
        """Return the configuration of the first adapter."""
        kind, usual, _ = METHODS[self.method]
        task = "CAUSAL_LM" if self.is_causal else "SEQ_CLS"
        targets = {} if self.method == "LSR" else {"target_modules": TARGETS[self.model]}  # PEFT's tables differ
        return kind(**copy.deepcopy({"task_type": task, **targets, **usual, **self.fields, **fields}))

    def second(self, **fields: Any) -> PeftConfig:
        """Return the configuration of a second adapter, of a different size if the method allows it."""
        usual = METHODS[self.method][2]
        return Subject(self.model, {**usual, **self.beside}, method=self.method).config(**fields)

    def fresh(self, **fields: Any) -> Any:
        """Return the model with a new adapter."""
        with torch.random.fork_rng():
            torch.manual_seed(0)  # not every method has a seed of its own
            return get_peft_model(tiny(self.model), self.config(**fields)).eval()

    def stirred(self, **fields: Any) -> Any:
        """Return the model with an adapter in which every parameter has been perturbed."""
        return stir(self.fresh(**fields))

    def with_two(self, **fields: Any) -> Any:
        """Return the model with two perturbed adapters, the first one active."""
        model = self.stirred(**fields)
        model.add_adapter("second", self.second(**fields))
        model.set_adapter("second")
        stir(model, seed=1)
        model.set_adapter("default")
        return model.eval()


# LSR's configurations.
DENSE: Fields = {"rank_shape": (4,), "separation_rank": None}
CORE: Fields = {**DENSE, "train": "core"}
BASES: Fields = {**CORE, "init_weights": "principal"}
SHARED: Fields = {**BASES, "share": "layers"}
CASES = {  # every option meets most of the others, each in one configuration
    "two factors": Subject("bert", layers=4),
    "padded": Subject(
        "bert-padded",
        {"rank_shape": (3, 2), "target_modules": ["query", "intermediate.dense", "attention.output.dense"]},
        layers=6,
    ),
    "principal, dropout": Subject("distilbert", {"init_weights": "principal", "dropout": 0.3}, layers=4),
    "one factor, principal, transposed": Subject(
        "gpt2", {**DENSE, "init_weights": "principal", "target_modules": "all-linear"}, layers=8
    ),
    "no seed, biases of the adapted": Subject(
        "bert", {"seed": None, "bias": "lsr_only", "exclude_modules": ["0.attention.self.value"]}, layers=3
    ),
    "patterns, more saved whole": Subject(
        "bert",
        {
            "target_modules": r".*\.(query|key|value)",
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1)},
            "alpha_pattern": {"0.attention.self.query": 3},
            "modules_to_save": ["pooler"],
        },
        ("classifier", "pooler"),
        layers=6,
    ),
    "a language model, one of its layers": Subject(
        "gpt2-causal", {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}, layers=1
    ),
    "a core, all biases": Subject("roberta", {**CORE, "bias": "all"}, layers=4),
    "a diagonal core": Subject("bert", {**BASES, "core": "diagonal"}, layers=4),
    "shared": Subject("distilbert", SHARED, layers=4),
    "shared, diagonal, transposed": Subject("gpt2", {**SHARED, "train": "all", "core": "diagonal"}, layers=2),
    "shared, grouped queries": Subject("llama-causal", {**SHARED, "train": "all", "init_weights": True}, layers=4),
}
