"""The subjects of probes, PEFT methods with configurations on tiny models, and what is probed on which."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model

from lsr import LsrConfig
from tests.capabilities.checks import stir
from tests.capabilities.models import Fields, tiny

COLUMNS = ("LSR", "LoRA", "LoKr", "VeRA")  # of the page
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
HEADLESS: Fields = {"task_type": None}  # for an adapter without modules trained in full


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


CLASSIFIERS = ("bert", "roberta", "distilbert", "gpt2")
LANGUAGE_MODELS = ("gpt2-causal", "llama-causal")
MODELS = (*CLASSIFIERS, *LANGUAGE_MODELS)
EVERY, PAIRS = "every", "pairs"  # configurations of LSR in the tests: all, and those of two adapters on one model


@dataclass(frozen=True)
class Behavior:
    """A probe, on what LSR's tests run it (models, EVERY or PAIRS), and the model shown in the docs.

    A probe takes a subject and an empty folder; if the behavior is missing it raises, with the reason in the first
    line.
    """

    probe: Callable[[Subject, Path], None]
    on: tuple[str, ...] | str = MODELS
    shown_on: str = "bert"
