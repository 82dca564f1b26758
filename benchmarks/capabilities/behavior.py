"""What a behavior is, and on which models it is probed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.capabilities.subjects import Subject

CLASSIFIERS = ("bert", "roberta", "distilbert", "gpt2")
LANGUAGE_MODELS = ("gpt2-causal", "llama-causal")
MODELS = (*CLASSIFIERS, *LANGUAGE_MODELS)
EVERY = "every"  # configuration of LSR that the tests know


@dataclass(frozen=True)
class Behavior:
    """A probe, the models (or EVERY configuration) on which LSR's tests run it, and the one that the page is about.

    A probe gets a subject and an empty folder; it returns if the behavior is there, and raises if not, with the reason
    in the first line.
    """

    probe: Callable[[Subject, Path], None]
    on: tuple[str, ...] | str = MODELS
    shown_on: str = "bert"
