"""The methods, data sets and protocols of the comparison: all that determines a cell.

A cell is one training and its scores. Its key is a hash of all that determines the result, except the code and the rows
of data and model. So a changed protocol gives new cells, which are never mixed with old ones.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.family.methods import METHODS, Layers, Pool
from pipeline import params
from pipeline.params import TrainView
from pipeline.params.changed import Overrides, changed

VERSION = 1  # to be raised when a change of code invalidates old cells: all are then run again
SEEDS = range(5)  # the first one is used for tuning, and is also one of the five reported
GRID = (0.002, 0.004, 0.008)  # learning rates, times the scale of a method
STEP = 2.0  # factor beyond the grid if its best rate is at an edge


class Sizes(NamedTuple):
    """How much of each split a cell reads; None is all. The first rows are a random sample: splits are hashed."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    longest: int | None = None  # tokens; longer texts are left out


SHORT = Sizes(train=960, validation=500, test=1000, longest=24)


class Data(NamedTuple):
    """A data set, and how much of it the short protocol reads. Data sets with the same source share texts."""

    source: str
    short: Sizes = SHORT


DATA: Mapping[str, Data] = {
    "movie-reviews": Data("movies"),
    "tweets": Data("tweets"),
    "amazon-reviews": Data("products"),
    "movie-ratings": Data("movies"),  # a number
    "movie-pairs": Data("movies", SHORT._replace(train=2880, longest=64)),  # two texts: harder, longer
}


class Protocol(NamedTuple):
    """How all methods are trained. It sets every field, so that params.yaml may change."""

    overrides: Overrides
    sees_all: bool  # of each data set, or Data.short


COMMON: Overrides = {
    "model": "minilm",
    "tokenize.max_length": 128,
    "train.weight_decay": 0.01,
    "train.warmup_share": 0.06,
    "train.compile": False,
    "lsr.share": "none",
    "lsr.core": "full",
    "lsr.budget": "none",
    "lsr.frames": "own",
    "lsr.frames_from": (),
    "lsr.frames_dtype": "float32",
    "lsr.examples": 2880,  # all examples of the short protocol
    "lsr.head_steps": 60,
    "lsr.dropout": 0.0,
    "lsr.in_shape": "auto",
    "lsr.out_shape": "auto",
    "lsr.target_modules": ("query", "value"),
    "lora.target_modules": ("query", "value"),
    "lora.lora_dropout": 0.0,
}
# Keys added to params.yaml after the first cells, with values of the former behavior; not part of the cells' keys.
LATER: Overrides = {
    "train.report_to": (),
    "lora.use_rslora": False,
    "lora.use_dora": False,
    "lora.init": "random",
    "lora.examples": 2880,
}
PROTOCOLS: Mapping[str, Protocol] = {
    "short": Protocol(
        {
            **COMMON,
            "train.epochs": 1,
            "train.batch_size": 8,
            "train.head_learning_rate": 0.01,  # a slower head would add noise between seeds in such short training
            "train.precision": "bf16",  # two thirds of the time of fp32 on a CPU with matrix units, the same scores
        },
        sees_all=False,
    ),
    "long": Protocol(
        {
            **COMMON,
            "train.epochs": 3,
            "train.batch_size": 32,
            "train.head_learning_rate": 0.002,
            "train.precision": "bf16",
            "lsr.examples": 4096,  # as in params.yaml for directions: the more the better
        },
        sees_all=True,
    ),
}
RATE_KEYS = {
    "lsr": "lsr.learning_rate",
    "lora": "lora.learning_rate",
    "full": "full.learning_rate",
    "head": "train.head_learning_rate",
}


class Run(NamedTuple):
    """A method on a data set in a protocol: tuned independently, with a row in the table."""

    protocol: str
    data: str
    method: str

    @property
    def name(self) -> str:
        """Protocol, data set and method."""
        return f"{self.protocol} {self.data}: {self.method}"

    def rates(self) -> tuple[float, ...]:
        """Return the learning rates of the grid."""
        return tuple(_rounded(rate * METHODS[self.method].scale) for rate in GRID)


class Cell(NamedTuple):
    """One training and its scores: a run in some layers at a learning rate, with a seed."""

    run: Run
    layers: Layers
    rate: float
    seed: int

    def overrides(self) -> dict[str, Any]:
        """Return the overrides of params.yaml, by dotted key."""
        method = METHODS[self.run.method]
        chosen = {**PROTOCOLS[self.run.protocol].overrides, **method.overrides, "data": self.run.data}
        if chosen["adapter"] in ("lsr", "lora"):
            chosen[f"{chosen['adapter']}.layers"] = self.layers
        if method.pool != "own":
            chosen["lsr.frames_from"] = pool(self.run.data, method.pool)
        return chosen | {RATE_KEYS[chosen["adapter"]]: self.rate, "seed": self.seed}

    def sizes(self) -> Sizes:
        """Return how much of the data the cell reads."""
        return sizes(self.run.protocol, self.run.data)

    def view(self) -> TrainView:
        """Return the values of params.yaml for this training.

        Raises:
            UserError: if a key or value is not allowed in params.yaml.
        """
        return changed({**LATER, **self.overrides()}, TrainView, place=(self.run.name,))

    def key(self) -> str:
        """Return a hash of the overrides, the sizes and the version, 16 hexadecimal digits."""
        chosen = self.overrides()
        others = set(params.ADAPTERS) - {chosen["adapter"]}
        own = {name: value for name, value in chosen.items() if name.partition(".")[0] not in others}
        seen = {name: sizes(self.run.protocol, name) for name in (self.run.data, *own.get("lsr.frames_from", ()))}
        known = {"version": VERSION, "sizes": seen, **own}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def sizes(protocol: str, data: str) -> Sizes:
    """Return how much of a data set a protocol reads."""
    return Sizes() if PROTOCOLS[protocol].sees_all else DATA[data].short


def pool(data: str, words: Pool) -> tuple[str, ...]:
    """Return the data sets for the frames: all, those without texts in common with this one, or one other."""
    if words in DATA:
        return (words,)
    return tuple(name for name, row in DATA.items() if words == "pooled" or row.source != DATA[data].source)


def beyond(rate: float, grid: tuple[float, ...]) -> float | None:
    """Return the next rate outside of the grid if a rate is at its edge, otherwise None."""
    if rate == min(grid):
        return _rounded(rate / STEP)
    return _rounded(rate * STEP) if rate == max(grid) else None


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")  # a product has spurious digits, which would change the key
