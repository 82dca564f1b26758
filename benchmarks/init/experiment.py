"""What is compared: the methods, the settings they are compared in, and the protocol that all cells share.

A cell is one training and its scores. Its key is a hash of all that determines the result but the code and the rows of
data and model, so that a cell of a changed protocol is another cell and never mixes with the old ones.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any, NamedTuple

from peft import PeftModel

from benchmarks.views import changed
from pipeline import params
from pipeline.methods import adapters, base_models
from pipeline.params import Targets, TrainView
from pipeline.params.rows import ModelRow

Overrides = Mapping[str, Any]  # dotted keys of params.yaml


class Sizes(NamedTuple):
    """How much of each split a cell sees. The first rows are a random sample, as splits are in the order of a hash."""

    train: int
    validation: int
    test: int
    longest: int  # tokens; longer texts are left out
    evaluations: int  # of the validation rows, at equal distances; the last one is at the end


VERSION = 1  # raise it when changed code makes the old cells wrong: all are then run again
SIZES = Sizes(train=960, validation=250, test=1000, longest=24, evaluations=4)
SEEDS = range(5)  # the first one tunes the learning rate
RATES = (0.002, 0.005, 0.012, 0.03)  # of the factors; of the head where it trains alone
RATE_KEYS = {"lsr": "lsr.learning_rate", "lora": "lora.learning_rate", "head": "train.head_learning_rate"}
UPDATE_SCALE = 4  # alpha / rank, so that one grid of learning rates does for all ranks
PROTOCOL: Overrides = {  # of every field, so that params.yaml can change
    "model": "minilm",
    "adapter": "lsr",
    "train.epochs": 1,
    "train.batch_size": 8,
    "train.head_learning_rate": 0.01,  # a slower head adds noise between seeds, so soon after the start
    "train.weight_decay": 0.01,
    "train.warmup_share": 0.06,
    "train.precision": "bf16",  # two thirds of the time of fp32 on a CPU with matrix units, the same scores
    "train.compile": False,
    "lsr.budget": "none",
    "lsr.rank_stabilized": False,
    "lsr.residual": "zero",
    "lsr.frames": "trained",
    "lsr.align": False,
    "lsr.examples": 256,
    "lsr.dropout": 0.0,
    "lsr.in_shape": "auto",
    "lsr.out_shape": "auto",
    "lsr.aspect": 1.0,
    "lora.lora_dropout": 0.0,
}

BASELINE = "random"
METHODS: dict[str, Overrides] = {
    BASELINE: {"lsr.init": "random"},
    "row space": {"lsr.init": "row_space"},
    "row space, aligned": {"lsr.init": "row_space", "lsr.align": True},
    "principal": {"lsr.init": "principal"},
    "principal, folded": {"lsr.init": "principal", "lsr.residual": "fold"},
    "principal, frozen copy": {"lsr.init": "principal", "lsr.residual": "frozen"},
    "minor, folded": {"lsr.init": "minor", "lsr.residual": "fold"},
    "CP": {"lsr.init": "cp"},
    "gradient": {"lsr.init": "gradient"},
    "activation": {"lsr.init": "activation"},
    "random, frozen frames": {"lsr.init": "random", "lsr.frames": "frozen"},
    "row space, frozen frames": {"lsr.init": "row_space", "lsr.frames": "frozen"},
}
REFERENCES: dict[str, Overrides] = {
    "head alone": {"adapter": "head"},
    "LoRA r=1": {"adapter": "lora", "lora.r": 1, "lora.lora_alpha": 2},
    "LoRA r=8": {"adapter": "lora", "lora.r": 8, "lora.lora_alpha": 16},
}
CP_RANKS: dict[tuple[int, ...], tuple[int, ...]] = {
    (2, 2): (2, 2, 1),
    (4, 4): (4, 2, 2),
}  # three factors of the same rank

EVERY = (*METHODS, *REFERENCES)
EACH_START = (  # each word of lsr.init once, at a start that is not zero where it has one
    BASELINE,
    "row space",
    "principal, folded",
    "minor, folded",
    "CP",
    "gradient",
    "activation",
    "random, frozen frames",
)
ALL_BUT_A_TWIN = tuple(method for method in EVERY if method != "principal, frozen copy")  # in the end, the folded one
FEW = ("random", "row space", "random, frozen frames", "row space, frozen frames")
QUERY_VALUE = ("query", "value")
VALUE_OUTPUT_INTERMEDIATE = ("value", "output.dense", "intermediate.dense")


class Setting(NamedTuple):
    """Where methods are compared: a data set, and the budget of `separation_rank` terms in query and value.

    Each method has the number of terms that comes nearest to this budget of trained numbers: terms with frozen frames
    and terms of three factors are smaller, and more layers have fewer terms each.
    """

    name: str
    data: str
    rank_shape: tuple[int, ...] = (2, 2)
    separation_rank: int = 1
    target_modules: Targets = QUERY_VALUE
    b_rate: float = 1.0
    frame_rate: float = 1.0
    methods: tuple[str, ...] = EVERY


SETTINGS = (  # with every method, or with a few for what else may matter
    Setting("movie-reviews r=4 s=1", "movie-reviews"),
    Setting("movie-reviews r=4 s=4", "movie-reviews", separation_rank=4, methods=ALL_BUT_A_TWIN),
    Setting(
        "movie-reviews r=4 s=4, value+output+intermediate",
        "movie-reviews",
        separation_rank=4,
        target_modules=VALUE_OUTPUT_INTERMEDIATE,
        methods=(*FEW, "LoRA r=1"),
    ),
    Setting(
        "movie-reviews r=4 s=4, all linear",
        "movie-reviews",
        separation_rank=4,
        target_modules="all-linear",
        methods=(*FEW, "LoRA r=1"),
    ),
    Setting("tweets r=4 s=1", "tweets", methods=(*EACH_START, *REFERENCES)),
    Setting("amazon-reviews r=4 s=1", "amazon-reviews", methods=(*EACH_START, *REFERENCES)),
    Setting("movie-reviews r=16 s=2", "movie-reviews", (4, 4), 2, methods=(*EACH_START, *REFERENCES)),
    Setting(
        "movie-reviews r=4 s=4, rate groups",
        "movie-reviews",
        separation_rank=4,
        b_rate=4.0,  # as in LoRA+ (Hayou et al. 2024, arXiv 2402.12354)
        frame_rate=8.0,  # min(8, sqrt(n / s)): by how much less than a step of A1 a step of A2 moves A
        methods=(BASELINE, "row space", "gradient", "principal, folded"),
    ),
)


class Cell(NamedTuple):
    """One training and its scores: a method in a setting at a learning rate, with a seed."""

    setting: Setting
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The setting and the method, in words."""
        return f"{self.setting.name}: {self.method}"

    def overrides(self) -> dict[str, Any]:
        """Return what this cell sets in params.yaml, by dotted keys."""
        setting = self.setting
        chosen = {
            **PROTOCOL,
            "data": setting.data,
            "seed": self.seed,
            "lsr.rank_shape": setting.rank_shape,
            "lsr.target_modules": setting.target_modules,
            "lora.target_modules": setting.target_modules,
            "lsr.alpha": UPDATE_SCALE * prod(setting.rank_shape),
            "lsr.b_rate": setting.b_rate,
            "lsr.frame_rate": setting.frame_rate,
            **(METHODS | REFERENCES)[self.method],
        }
        chosen[RATE_KEYS[chosen["adapter"]]] = self.rate
        if chosen["adapter"] == "lsr":
            if chosen["lsr.init"] == "cp":
                chosen["lsr.rank_shape"] = CP_RANKS[setting.rank_shape]
            budget = setting.separation_rank * numbers_a_term(setting.data, setting.rank_shape, QUERY_VALUE, "trained")
            size = numbers_a_term(setting.data, chosen["lsr.rank_shape"], setting.target_modules, chosen["lsr.frames"])
            chosen["lsr.separation_rank"] = nearest_terms(budget, size)
        return chosen

    def view(self) -> TrainView:
        """Return what the training sees of params.yaml.

        Raises:
            UserError: if params.yaml knows no such keys or values.
        """
        return changed(self.overrides(), self.name)

    def key(self) -> str:
        """Return 16 hexadecimal digits that stand for what this cell sets, the sizes and the version."""
        chosen = self.overrides()
        others = set(params.ADAPTERS) - {chosen["adapter"]}
        own = {name: value for name, value in chosen.items() if name.partition(".")[0] not in others}
        known = {"version": VERSION, "sizes": SIZES, **own}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def nearest_terms(budget: int, numbers_a_term: int) -> int:
    """Return the number of terms, one or more, whose numbers come nearest to the budget; of two, the smaller one."""
    return max(1, -(-(2 * budget - numbers_a_term) // (2 * numbers_a_term)))


@cache
def numbers_a_term(data: str, rank_shape: tuple[int, ...], target_modules: Targets, frames: str) -> int:
    """Return how many numbers one Kronecker term trains in all target layers together; the model is built to see."""
    form = {"lsr.rank_shape": rank_shape, "lsr.target_modules": target_modules, "lsr.frames": frames}
    view = changed({**PROTOCOL, "data": data, "lsr.init": "random", "lsr.separation_rank": 1, **form}, "one term")
    base = base_models.load_base_model(view.base_model, view.dataset)
    return trained_numbers(adapters.add_adapter(base, view.section, view.base_model, 0), view.base_model)


def trained_numbers(model: PeftModel, row: ModelRow) -> int:
    """Return how many numbers of the adapter train, without the head."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not set(row.head) & set(name.split("."))
    )
