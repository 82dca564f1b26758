"""Behaviors, and the models on which they are probed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.capabilities.subjects import Subject

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
