"""LsrConfig: what a user chooses of an LSR adapter."""

import re
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

from peft import PeftConfig, PeftType

INITIALISATIONS = ("random", "row_space")
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
    separation_rank: int = field(
        default=16, metadata={"help": "Number of Kronecker terms in each of A and B: how many numbers describe them."}
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
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "True or 'random': a random A and B = 0, the model is unchanged. 'row_space': A from the leading "
            "right singular vectors of the pretrained weight, B = 0. False: both random, for tests. A saved adapter "
            "holds its factors, so it is written with True: loading decomposes nothing."
        },
    )
    seed: int | None = field(
        default=None,
        metadata={"help": "Seed of the initial factors, mixed with each layer's name. None: torch's global generator."},
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
        self._started = False
        self._check()
        self._check_expressions()

    def _check(self) -> None:
        for name, shape in self._with_pattern("rank_shape", "rank_pattern").items():
            if len(shape) < 2 or min(shape) < 1:
                raise ValueError(f"{name} must hold two or more ranks >= 1, got {list(shape)}")
        for name, s in self._with_pattern("separation_rank", "separation_rank_pattern").items():
            if s < 1:
                raise ValueError(f"{name} must be >= 1, got {s}")
        for side in ("in_shape", "out_shape"):
            shape = getattr(self, side)
            if shape is not None and (len(shape) != len(self.rank_shape) or min(shape) < 1):
                raise ValueError(
                    f"{side} must hold {len(self.rank_shape)} sizes >= 1, as rank_shape does, got {list(shape)}"
                )
        if not isinstance(self.init_weights, bool) and self.init_weights not in INITIALISATIONS:
            raise ValueError(
                f"init_weights must be a bool or one of {list(INITIALISATIONS)}, got {self.init_weights!r}"
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

    def mark_started(self) -> None:
        """Note that the factors now exist: what is saved from here on needs no decomposition to be loaded."""
        self._started = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, sets as sorted lists: the same file in every process."""
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}
        if self._started:
            fields["init_weights"] = True
        if self.modules_to_save:  # PEFT appends the names of the usual heads each time that an adapter is loaded
            fields["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        return fields
