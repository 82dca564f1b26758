"""Advice on the last screen: what the reports of a run suggest to change."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core import artifacts
from pipeline.params import Params
from pipeline.params.sections import TrainParams

FEW_EXAMPLES = 10  # training examples of a class
MAX_CLASSES = 3  # maximum number of classes that are named
RISE = 1.05  # ratio of the last validation loss to the lowest
MIN_EPOCHS = 2  # after the one with the lowest validation loss
MIN_SHARE = 0.0005  # smallest share of truncated texts to mention
SHARE = "share_"  # before the name of a class, in the report of the splits


def hints(params: Params) -> Iterator[str]:
    """Yield sentences on overfitting, rare classes and truncated texts, from the reports of the last run."""
    losses = _read_report(artifacts.TRAIN_VALIDATION_LOSS)["validation_loss"].to_numpy()
    yield from _on_patience(losses, params.train)
    train = _read_report(artifacts.TOKENIZE_SPLITS).set_index("part").loc["train"]
    yield from _on_classes(train)
    yield from _on_length(train, params.tokenize.max_length)


def _read_report(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def _on_patience(losses: np.ndarray, train: TrainParams) -> Iterator[str]:
    """Yield a sentence if the validation loss, by epoch, has risen since an epoch, and no patience ends training."""
    if train.patience != "none":
        return
    best = int(losses.argmin())
    epochs = len(losses)
    if epochs - 1 - best < MIN_EPOCHS or losses[-1] < RISE * losses[best]:
        return
    rise = f"validation loss rose from {losses[best]:.4g} after epoch {best + 1} to {losses[-1]:.4g}"
    patience = min(MIN_EPOCHS, epochs - 2)  # a larger patience would never end training
    yield f"{rise}: train.patience: {patience} ends training that no longer improves the validation score"


def _on_classes(train: pd.Series) -> Iterator[str]:
    """Yield a sentence if classes or labels have few training examples."""
    shares = train[train.index.str.startswith(SHARE)].astype(float)
    counts = (shares * float(train["rows"])).round().astype(int)
    few = counts[counts < FEW_EXAMPLES].sort_values()
    if few.empty:
        return
    named = [f"{name.removeprefix(SHARE)} {count}" for name, count in few[:MAX_CLASSES].items()]
    more = f" and {len(few) - MAX_CLASSES} more" if len(few) > MAX_CLASSES else ""
    reason = f"below {FEW_EXAMPLES} training examples, a class is hardly learned"
    yield f"label more texts of {', '.join(named)}{more}: {reason}"


def _on_length(train: pd.Series, max_length: int) -> Iterator[str]:
    """Yield a sentence if training texts were truncated."""
    share = float(train["truncated_share"])
    if share < MIN_SHARE:
        return
    longer = f"{share:.1%} of the training texts have more than tokenize.max_length: {max_length} tokens"
    yield f"{longer} and are truncated; 99 % have at most {int(train['tokens_p99'])}"
