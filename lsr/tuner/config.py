"""LsrConfig: what a user chooses of an LSR adapter."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from peft import PeftConfig, PeftType
from peft.utils.other import get_pattern_key

from lsr.algebra.shapes import Form
from lsr.init import INITIALIZATIONS
from lsr.tuner.resolved import Resolved

Value = TypeVar("Value")

PATTERNS = ("rank_pattern", "separation_rank_pattern", "alpha_pattern")
TRAINED = ("factors", "first")


@dataclass
class LsrConfig(PeftConfig):
    """Configuration of an LSR adapter: ΔW = alpha / r * (sum_k B1_k ⊗ B2_k)(sum_k A1_k ⊗ A2_k).

    The update has rank r = r1 * r2 * ..., the product of `rank_shape`. The separation rank never enters the scaling.

    Raises:
        ValueError: if a value is out of bounds, names what is allowed.

    Reference: Li & Sarwate 2025 (arXiv 2502.13568).
    """

    rank_shape: tuple[int, ...] = field(
        default=(2, 2),
        metadata={"help": "Ranks (r1, r2, ...) of the Kronecker factors, one a factor; their product is the rank."},
    )
    separation_rank: int = field(
        default=16,
        metadata={"help": "Number of Kronecker terms in each of A and B: how many parameters describe them."},
    )
    alpha: float = field(default=16, metadata={"help": "Numerator of the scaling, alpha / rank."})
    in_shape: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "Factors (n1, n2, ...) of the input width. None: the shape of fewest parameters."},
    )
    out_shape: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "Factors (m1, m2, ...) of the output width. None: the shape of fewest parameters."},
    )
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "Name of the initialization. True or 'random': as LoRA. 'row_space': A from the leading right "
            "singular vectors of the weight. 'principal', 'minor': A and B fitted together to the weight or to its "
            "trailing singular part; 'cp': the factors of its truncated SVD decomposed one by one; what these three "
            "start at is subtracted from the base weight, in memory only. 'gradient': A and B's frame from examples, "
            "see `lsr.start_from_examples`. False: all random, for tests. The fresh model is unchanged but for False."
        },
    )
    train: str = field(
        default="factors",
        metadata={"help": "'factors': all of them. 'first': A1 and B1 alone; A2, B2, ... keep what they start with."},
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

    resolved: Resolved | None = field(
        default=None,
        metadata={
            "help": "Of a saved adapter: the shapes of its layers, and hashes of the base weights that its start is "
            "subtracted from. It is written when an adapter is made, never given by hand."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LSR")
        self.rank_shape = tuple(self.rank_shape)
        self.in_shape = tuple(self.in_shape) if self.in_shape is not None else None
        self.out_shape = tuple(self.out_shape) if self.out_shape is not None else None
        self.rank_pattern = {name: tuple(shape) for name, shape in self.rank_pattern.items()}
        if self.resolved is not None and not isinstance(self.resolved, Resolved):
            self.resolved = Resolved.from_fields(self.resolved)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        self._made: Resolved | None = None  # what files will say once the adapter is made
        self._check_shapes()
        self._check_choices()
        self._check_expressions()

    def _check_shapes(self) -> None:
        for name, shape in self._with_pattern("rank_shape", "rank_pattern").items():
            if len(shape) < 2 or min(shape) < 1:
                raise ValueError(f"{name} must hold two or more ranks >= 1, got {list(shape)}")
        for name, s in self._with_pattern("separation_rank", "separation_rank_pattern").items():
            if not (isinstance(s, int) and s >= 1):
                raise ValueError(f"{name} must be >= 1, got {s!r}")
        for side in ("in_shape", "out_shape"):
            shape = getattr(self, side)
            if shape is not None and (len(shape) != len(self.rank_shape) or min(shape) < 1):
                raise ValueError(
                    f"{side} must hold {len(self.rank_shape)} sizes >= 1, as rank_shape does, got {list(shape)}"
                )

    def _check_choices(self) -> None:
        if not isinstance(self.init_weights, bool) and self.init_weights not in INITIALIZATIONS:
            raise ValueError(
                f"init_weights must be a bool or one of {list(INITIALIZATIONS)}, got {self.init_weights!r}"
            )
        if self.train not in TRAINED:
            raise ValueError(f"train must be one of {list(TRAINED)}, got {self.train!r}")
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

    @property
    def start(self) -> str:
        """Name of the initialization; False maps to 'random', for only its B differs."""
        return self.init_weights if isinstance(self.init_weights, str) else "random"

    @property
    def is_saved(self) -> bool:
        """Whether the factors are in a file, so that none need to be initialized."""
        return self.resolved is not None

    def remember(self, forms: Mapping[str, Form], base_hashes: Mapping[str, str]) -> None:
        """Have files say what is known of a finished adapter; this object can still start another model."""
        self._made = Resolved.of(forms, base_hashes)

    def with_layers(self, forms: Mapping[str, Form], scalings: Mapping[str, float]) -> "LsrConfig":
        """Return the configuration of an adapter whose factors are there, of these shapes and scalings by layer.

        The most frequent values become the usual ones, those of other layers a pattern that matches only them.
        """
        rank_shape, rank_pattern = _most_frequent({name: form.rank_shape for name, form in forms.items()})
        terms, term_pattern = _most_frequent({name: form.separation_rank for name, form in forms.items()})
        alpha, alpha_pattern = _most_frequent({name: scalings[name] * form.rank for name, form in forms.items()})
        return replace(
            self,
            rank_shape=rank_shape,
            rank_pattern=_as_pattern(rank_pattern),
            separation_rank=terms,
            separation_rank_pattern=_as_pattern(term_pattern),
            alpha=alpha,
            alpha_pattern=_as_pattern(alpha_pattern),
            init_weights=True,
            train="factors",
            in_shape=None,
            out_shape=None,
            resolved=Resolved.of(forms, {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, sets as sorted lists: the same file in every process."""
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}
        if self._made is not None:
            fields["resolved"] = asdict(self._made)
        if self.modules_to_save:  # PEFT appends the names of the usual heads each time that an adapter is loaded
            fields["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        return fields


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return what a pattern of the configuration says of a layer, or what is usual."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def _most_frequent(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """Return the most frequent value, and those of the other layers by name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {name: value for name, value in values.items() if value != usual}


def _as_pattern(values: Mapping[str, Value]) -> dict[str, Value]:
    return {re.escape(name): value for name, value in values.items()}
