"""LsrConfig: what a user chooses of an LSR adapter."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod, sqrt
from typing import Any, TypeVar

from peft import PeftConfig, PeftType

Value = TypeVar("Value")

# By what they look at: a start that is a function of the seed or of the weight alone can be made again when loading.
PRODUCT_STARTS = ("principal", "minor", "cp")  # they fit A and B, so these may also start at a non-zero update
DATA_STARTS = ("gradient", "activation")
INITIALISATIONS = ("random", "row_space", *PRODUCT_STARTS, *DATA_STARTS)
RESIDUALS = ("zero", "fold", "frozen")
PATTERNS = ("rank_pattern", "separation_rank_pattern", "alpha_pattern")


@dataclass
class LsrConfig(PeftConfig):
    """Configuration of an LSR adapter: ΔW = scaling * (sum_k B1_k ⊗ B2_k)(sum_k A1_k ⊗ A2_k).

    The update has rank r = r1 * r2 * ..., the product of `rank_shape`, and scaling = alpha / r, or alpha / sqrt(r) if
    `rank_stabilized`. The separation rank never enters the scaling.

    Raises:
        ValueError: if a value is out of bounds, names what is allowed.

    Reference: Li & Sarwate 2025 (arXiv 2502.13568).
    """

    rank_shape: tuple[int, ...] = field(
        default=(2, 2),
        metadata={"help": "Ranks (r1, r2, ...) of the Kronecker factors, one a factor; their product is the rank."},
    )
    separation_rank: int | str = field(
        default=16,
        metadata={
            "help": "Number of Kronecker terms in each of A and B: how many numbers describe them. 'auto' spreads "
            "`budget` numbers over the layers, where they capture most of the leading row space of the weight."
        },
    )
    budget: int | None = field(
        default=None, metadata={"help": "Trained numbers in all layers together, for separation_rank='auto'."}
    )
    alpha: float = field(default=16, metadata={"help": "Numerator of the scaling."})
    rank_stabilized: bool = field(
        default=False,
        metadata={
            "help": "Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732)."
        },
    )
    in_shape: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Factors (n1, n2, ...) of the input width. None: the shape of fewest numbers."}
    )
    out_shape: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Factors (m1, m2, ...) of the output width. None: the shape of fewest numbers."}
    )
    aspect: float = field(
        default=1.0,
        metadata={
            "help": "Size of the first factors against the others that shapes of None aim for: 1 for fewest numbers; "
            "with frozen frames, more puts the long side on what trains, less on what is frozen."
        },
    )
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "True or 'random': as LoRA. 'row_space': A from the leading right singular vectors of the weight. "
            "'principal', 'minor': A and B fitted together to the weight or to its trailing singular part. 'cp': the "
            "factors of the truncated SVD decomposed one by one. 'gradient', 'activation': A from examples, see "
            "`lsr.start_from_examples`. False: all random, for tests. The fresh model is unchanged but for False."
        },
    )
    residual: str = field(
        default="zero",
        metadata={
            "help": "How a fresh adapter leaves the model unchanged. 'zero': B1 = 0. For principal, minor and cp also "
            "'fold': the start is subtracted from the base weight, in memory only; 'frozen': a frozen copy of the "
            "start is subtracted from the adapter, which then costs as rank 2r."
        },
    )
    frames: str = field(
        default="trained",
        metadata={
            "help": "'frozen': only A1 and B1 train; A2, B2, ... keep their start and are not stored where it can be "
            "made again from the seed or the base weight."
        },
    )
    align: bool = field(
        default=False,
        metadata={
            "help": "Search the order of inputs (and outputs, where the start fits B) in which the target is most "
            "separable; the order is stored with the adapter and costs nothing at run time."
        },
    )
    seed: int | None = field(
        default=None,
        metadata={"help": "Seed of the initial factors, mixed with each layer's name. None: torch's global generator."},
    )
    deferred: bool = field(
        default=False,
        metadata={
            "help": "Leave the factors random in get_peft_model; `start_factors` then starts them layer by "
            "layer, for callers that show progress. A start from examples is always deferred."
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Probability of dropping an input of the adapter."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Layers to adapt: a list of name endings, a regular expression, or 'all-linear'. None: the usual "
            "ones of the architecture. Each entry of a list must match."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out: a list of name endings or a regular expression."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the transformer layers to adapt; None: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform counts in."}
    )
    rank_pattern: dict[str, tuple[int, ...]] = field(
        default_factory=dict, metadata={"help": "Name ending or regular expression -> rank_shape of those layers."}
    )
    separation_rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Name ending or regular expression -> separation_rank of those layers."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Name ending or regular expression -> alpha of those layers."}
    )
    bias: str = field(
        default="none", metadata={"help": "Biases that train too: 'none', 'all', or 'lsr_only' for adapted layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save whole beside the factors, such as a new head."}
    )

    recipe: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Of a loaded adapter: what tells whether a start that is made again is the same one. It is written "
            "when the factors are started, never given by hand."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LSR")
        self.rank_shape = tuple(self.rank_shape)
        self.in_shape = tuple(self.in_shape) if self.in_shape is not None else None
        self.out_shape = tuple(self.out_shape) if self.out_shape is not None else None
        self.rank_pattern = {name: tuple(shape) for name, shape in self.rank_pattern.items()}
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        self._new_recipe: dict[str, Any] | None = None
        self._check()
        self._check_start()
        self._check_expressions()

    def _check(self) -> None:
        for name, shape in self._with_pattern("rank_shape", "rank_pattern").items():
            if len(shape) < 2 or min(shape) < 1:
                raise ValueError(f"{name} must hold two or more ranks >= 1, got {list(shape)}")
        for name, s in self._with_pattern("separation_rank", "separation_rank_pattern").items():
            if not (isinstance(s, int) and s >= 1) and (name, s) != ("separation_rank", "auto"):
                raise ValueError(f"{name} must be >= 1{' or auto' * (name == 'separation_rank')}, got {s!r}")
        if (self.budget is None) == (self.separation_rank == "auto"):
            raise ValueError(
                f"separation_rank='auto' and budget need each other, got {self.separation_rank!r} and {self.budget}"
            )
        if self.separation_rank == "auto" and self.separation_rank_pattern and self.recipe is None:
            raise ValueError("separation_rank='auto' fills separation_rank_pattern itself, so it must be empty")
        if not 0 < self.aspect < float("inf"):
            raise ValueError(f"aspect must be a number > 0, got {self.aspect}")
        for side in ("in_shape", "out_shape"):
            shape = getattr(self, side)
            if shape is not None and (len(shape) != len(self.rank_shape) or min(shape) < 1):
                raise ValueError(
                    f"{side} must hold {len(self.rank_shape)} sizes >= 1, as rank_shape does, got {list(shape)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.bias not in ("none", "all", "lsr_only"):
            raise ValueError(f"bias must be 'none', 'all' or 'lsr_only', got {self.bias!r}")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} needs target_modules to be a list, got the pattern {self.target_modules!r}"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform, got None")

    def _check_start(self) -> None:
        if not isinstance(self.init_weights, bool) and self.init_weights not in INITIALISATIONS:
            raise ValueError(
                f"init_weights must be a bool or one of {list(INITIALISATIONS)}, got {self.init_weights!r}"
            )
        for name, allowed in (("residual", RESIDUALS), ("frames", ("trained", "frozen"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        if self.residual != "zero" and self.init_weights not in PRODUCT_STARTS:
            raise ValueError(
                f"residual={self.residual!r} needs a start that fits B too, one of {list(PRODUCT_STARTS)}, "
                f"got init_weights={self.init_weights!r}"
            )
        if self.align and self.init_weights in (True, False, "random", "cp"):
            alignable = [word for word in INITIALISATIONS if word not in ("random", "cp")]
            raise ValueError(f"align needs init_weights to be one of {alignable}, got {self.init_weights!r}")

    def _check_expressions(self) -> None:
        for name in ("target_modules", "exclude_modules", *PATTERNS):
            value = getattr(self, name)
            for expression in [value] if isinstance(value, str) else value if isinstance(value, dict) else []:
                try:
                    re.compile(expression)
                except re.error as error:
                    raise ValueError(f"{name}: {expression!r} is no regular expression: {error}") from None

    def _with_pattern(self, name: str, pattern: str) -> dict[str, Any]:
        """Return the usual value and those of single layers, by how an error should call them."""
        return {
            name: getattr(self, name),
            **{f"{pattern}[{k!r}]": value for k, value in getattr(self, pattern).items()},
        }

    def scaling(self, rank_shape: tuple[int, ...], alpha: float) -> float:
        """Return the one factor between B A and ΔW."""
        rank = prod(rank_shape)
        return alpha / sqrt(rank) if self.rank_stabilized else alpha / rank

    def with_layers(
        self,
        rank_shapes: Mapping[str, tuple[int, ...]],
        separation_ranks: Mapping[str, int],
        scalings: Mapping[str, float],
    ) -> "LsrConfig":
        """Return the configuration of an adapter whose factors are there, with these values for its layers.

        The most frequent values become the usual ones, those of other layers a pattern that matches only them.
        """
        alphas = {name: scaling * prod(rank_shapes[name]) for name, scaling in scalings.items()}
        rank_shape, rank_pattern = _most_frequent(rank_shapes)
        terms, term_pattern = _most_frequent(separation_ranks)
        alpha, alpha_pattern = _most_frequent(alphas)
        return replace(
            self,
            rank_shape=rank_shape,
            rank_pattern=rank_pattern,
            separation_rank=terms,
            separation_rank_pattern=term_pattern,
            budget=None,
            alpha=alpha,
            alpha_pattern=alpha_pattern,
            rank_stabilized=False,
            recipe={},  # nothing is started again
        )

    @property
    def start(self) -> str:
        """The word that says how factors start; False has one too, for only its B differs."""
        return self.init_weights if isinstance(self.init_weights, str) else "random"

    @property
    def fits_outputs(self) -> bool:
        """Whether the start fits B too."""
        return self.start in PRODUCT_STARTS

    @property
    def can_start_again(self) -> bool:
        """Whether the start is a function of the seed, or of the base weight alone."""
        return self.seed is not None if self.start == "random" else self.start not in DATA_STARTS

    @property
    def needs_start_again(self) -> bool:
        """Whether a loaded adapter lacks something that only its start holds."""
        return self.can_start_again and (self.frames == "frozen" or self.residual != "zero")

    def remember(self, recipe: dict[str, Any]) -> None:
        """Have the recipe of a finished start written to files; this object can still start another model."""
        self._new_recipe = recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, sets as sorted lists: the same file in every process."""
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}
        if self._new_recipe is not None:
            fields["recipe"] = self._new_recipe
        if self.modules_to_save:  # PEFT appends the names of the usual heads each time that an adapter is loaded
            fields["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        return fields


def _most_frequent(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """Return the most frequent value, and those of the other layers by a pattern that matches only them."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {re.escape(name): value for name, value in values.items() if value != usual}
