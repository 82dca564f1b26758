"""Advice on the last screen: what the reports of a run suggest to change."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lsr_onnx.errors import some_of
from pipeline.core import artifacts
from pipeline.params import Params, effects
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sections import TrainParams

FEW_EXAMPLES = 10  # training examples of a class
SHORT = 200  # optimizer steps; a run with fewer is short
SMALL = 1000  # training examples, below which those of validation are worth learning from, too
MAX_CLASSES = 3  # maximum number of classes that are named
RISE = 1.05  # ratio of the last validation loss to the lowest
MIN_EPOCHS = 2  # epochs after the one with the lowest validation loss
MIN_SHARE = 0.0005  # smallest share of truncated texts to mention
SHARE = "share_"  # prefix of the name of a class in the report of the splits


def hints(params: Params, entry: DatasetEntry, steps: int) -> Iterator[str]:
    """Yield sentences on overfitting, small data, rare classes and long texts, from the reports of the last run.

    `steps` are the optimizer steps of the run: with too few, more examples are not what it lacks.
    """
    validation = pd.read_csv(artifacts.TRAIN_VALIDATION_LOSS)
    losses = validation["validation_loss"].to_numpy()
    yield from _on_patience(losses, params.train)
    splits = pd.read_csv(artifacts.TOKENIZE_SPLITS)
    by_part = splits.set_index("part")
    train = by_part.loc["train"]
    if effects.can_refit(params, entry) and not params.train.refit and steps >= SHORT:
        yield from _on_small_data(int(train["rows"]), int(by_part.loc["validation", "rows"]))
    yield from _on_classes(train)
    yield from _on_length(train, params.tokenize.max_length)


def _on_patience(losses: np.ndarray, train: TrainParams) -> Iterator[str]:
    """Yield a sentence if the validation loss, by epoch, has risen since an epoch, and no patience ends training."""
    if train.patience != "none":
        return
    best = int(losses.argmin())
    epochs = len(losses)
    lowest = losses[best]
    last = losses[-1]
    if epochs - 1 - best < MIN_EPOCHS or last < RISE * lowest:
        return
    rise = f"validation loss rose from {lowest:.4g} after epoch {best + 1} to {last:.4g}"
    patience = min(MIN_EPOCHS, epochs - 2)  # a larger patience would never end training
    yield f"{rise}: train.patience: {patience} ends training that no longer improves the validation score"


def _on_small_data(train: int, validation: int) -> Iterator[str]:
    """Yield a sentence if there are few training examples."""
    if train < SMALL:
        learned = f"train.refit: true then learns from the {validation:,} of validation, too"
        yield f"{train:,} training examples are few: {learned}"


def _on_classes(train: pd.Series) -> Iterator[str]:
    """Yield a sentence if classes or labels have few training examples."""
    is_share = train.index.str.startswith(SHARE)
    shares = train[is_share].astype(float)
    examples = shares * float(train["rows"])
    counts = examples.round().astype(int)
    is_few = counts < FEW_EXAMPLES
    few = counts[is_few].sort_values()
    if few.empty:
        return
    named = [f"{name.removeprefix(SHARE)} {count}" for name, count in few.items()]
    reason = f"below {FEW_EXAMPLES} training examples, a class is hardly learned"
    yield f"label more texts of {some_of(named, MAX_CLASSES)}: {reason}"


def _on_length(train: pd.Series, max_length: int) -> Iterator[str]:
    """Yield a sentence if training texts were truncated."""
    share = float(train["truncated_share"])
    if share < MIN_SHARE:
        return
    longer = f"{share:.1%} of the training texts have more than tokenize.max_length: {max_length} tokens"
    usual = int(train["tokens_p99"])
    yield f"{longer} and are truncated; 99 % have at most {usual}"
