"""LsrConfig: the options of an LSR adapter."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar, cast

from peft import PeftConfig, PeftType
from peft.utils.other import get_pattern_key

from lsr.algebra.shapes import Form
from lsr.init import INITIALIZATIONS, READERS
from lsr.tuner import card
from lsr.tuner.expressions import check_syntax
from lsr.tuner.factors import STORAGE
from lsr.tuner.resolved import Resolved
from lsr.tuner.saved import WEIGHTS

Value = TypeVar("Value")

PATTERNS = ("rank_pattern", "separation_rank_pattern", "alpha_pattern")
SHARED = ("none", "layers")
CORED = ("core", "all")  # the values of `train` that add a core
TRAINED = ("factors", "first", *CORED)
OWN = "own"
DIAGONAL = 8  # divides alpha if the core is diagonal: its directions are independent, whatever r is
TERMS = 16  # the default separation rank for two or more factors


@dataclass
class LsrConfig(PeftConfig):
    """Configuration of an LSR adapter: ΔW = alpha / r * (sum_k B1_k ⊗ B2_k) R (sum_k A1_k ⊗ A2_k).

    The update has rank r = r1 * r2 * ..., the product of `rank_shape`; with a single factor, A and B are dense. The
    core R is r x r if `train` is `core` or `all`, and the identity otherwise. With `share="layers"` all layers of a
    kind, which differ only in their index, share A and B, and each has its own core.

    Raises:
        ValueError: if a value is out of bounds; names the field and what is allowed.

    Reference: Li & Sarwate 2025 (arXiv 2502.13568).
    """

    rank_shape: tuple[int, ...] = field(
        default=(2, 2),
        metadata={
            "help": "Ranks (r1, r2, ...) of the Kronecker factors; their product is the rank. (r,): A and B are dense."
        },
    )
    separation_rank: int | None = field(
        default=None,
        metadata={
            "help": "Number of Kronecker terms in each of A and B, which determines the number of their parameters. "
            f"None: {TERMS}, or 1 with a single factor."
        },
    )
    share: str = field(
        default="none",
        metadata={
            "help": "'none': each layer has its own A and B. 'layers': all layers of a kind share them, and each has "
            "its own core."
        },
    )
    alpha: float = field(default=16, metadata={"help": "Numerator of the scaling, alpha / rank."})
    in_shape: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "Factors (n1, n2, ...) of the input width. None: those with the fewest parameters."},
    )
    out_shape: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "Factors (m1, m2, ...) of the output width. None: those with the fewest parameters."},
    )
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "Name of the initialization. True or 'random': as LoRA. 'principal': A and B fitted jointly to the "
            "weight, from which this initial update is subtracted, in memory only. 'gradient', 'update': A and B's "
            "frame from the gradient over examples, or from the update of a short training on them; 'warm': that "
            "update, and the head as trained; see `lsr.start_from_examples`. Around a core A and B are frames: "
            "orthonormal directions, either random or the leading singular vectors of the weight ('principal'), of the "
            "gradient or of the update. The core is initialized to zero, with 'warm' to the update between the frames. "
            "False: all random, for tests. Only it and 'warm' change the output of a fresh model."
        },
    )
    train: str = field(
        default="factors",
        metadata={
            "help": "What to train. 'factors': all factors. 'first': A1 and B1 only; A2, B2, ... stay as initialized. "
            "'core': a core between A and B, which are frozen frames. 'all': the core and all factors."
        },
    )
    core: str = field(
        default="full",
        metadata={
            "help": "Form of the core, if there is one. 'full': r x r. 'diagonal': r entries, so that the i-th "
            "direction of A is mapped only to the i-th of B; needs one rank in rank_shape."
        },
    )
    frames: str = field(
        default=OWN,
        metadata={
            "help": "Source of frozen frames: 'own', or the folder or hub repository of another adapter whose frames "
            "to use: only the core is trained and stored; `init_weights` and `frames_dtype` are those of the frames."
        },
    )
    frames_dtype: str = field(
        default="float32",
        metadata={"help": f"Dtype of frozen frames, rounded before training: {', '.join(STORAGE)}."},
    )
    seed: int | None = field(
        default=None,
        metadata={"help": "Seed of the initial factors, mixed with each layer's name. None: torch's global generator."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Probability of dropping an input of the adapter."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Layers to adapt: a list of name endings, a regular expression, or 'all-linear'. None: the default "
            "layers of the architecture. Each entry of a list must match."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out: a list of name endings or a regular expression."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the transformer layers to adapt; None: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform indexes."}
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
        default="none", metadata={"help": "Biases to train: 'none', 'all', or 'lsr_only' for those of adapted layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save in full, such as a new head."}
    )

    resolved: Resolved | None = field(
        default=None,
        metadata={
            "help": "Of a saved adapter: the shapes of its layers, and hashes of the base weights from which its "
            "initial update is subtracted. Written when an adapter is created; not to be set by hand."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LSR")
        self.rank_shape = _as_sizes("rank_shape", self.rank_shape)
        if not isinstance(self.frames, str | PathLike):
            raise ValueError(f"frames must be {OWN!r} or the folder or hub repository of frames, got {self.frames!r}")
        self.frames = fspath(self.frames)
        for name in PATTERNS:
            setattr(self, name, {} if getattr(self, name) is None else getattr(self, name))
        if self.separation_rank is None:
            self.separation_rank = usual_terms(self.rank_shape)
        self.in_shape = None if self.in_shape is None else _as_sizes("in_shape", self.in_shape)
        self.out_shape = None if self.out_shape is None else _as_sizes("out_shape", self.out_shape)
        self.rank_pattern = {
            name: _as_sizes(f"rank_pattern[{name!r}]", shape) for name, shape in self.rank_pattern.items()
        }
        if self.resolved is not None and not isinstance(self.resolved, Resolved):
            self.resolved = Resolved.from_fields(self.resolved)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        self._made: Resolved | None = None  # written to files once the adapter is created
        self.awaits_examples = False  # from when the layers exist until they are initialized from examples
        self.reads_examples = False  # while examples pass through the model
        self.folder: Path | None = None  # where it was read from, if it was
        self.labels: tuple[str, ...] = ()  # of the base model, for the card
        self._check_shapes()
        self._check_choices()
        self._check_combinations()
        check_syntax(vars(self))

    def _check_shapes(self) -> None:
        for name, shape in self._with_pattern("rank_shape", "rank_pattern").items():
            if not shape or not all(map(_is_count, shape)):
                raise ValueError(f"{name} must hold one or more ranks >= 1, got {list(shape)}")
        for name, s in self._with_pattern("separation_rank", "separation_rank_pattern").items():
            if not _is_count(s):
                raise ValueError(f"{name} must be >= 1, got {s!r}")
        for side in ("in_shape", "out_shape"):
            shape = getattr(self, side)
            if shape is not None and (len(shape) != len(self.rank_shape) or not all(map(_is_count, shape))):
                raise ValueError(
                    f"{side} must hold {len(self.rank_shape)} sizes >= 1, as rank_shape does, got {list(shape)}"
                )

    def _check_choices(self) -> None:
        if not isinstance(self.init_weights, bool) and self.init_weights not in INITIALIZATIONS:
            raise ValueError(
                f"init_weights must be a bool or one of {list(INITIALIZATIONS)}, got {self.init_weights!r}"
            )
        words = {"train": TRAINED, "core": ("full", "diagonal"), "share": SHARED, "frames_dtype": tuple(STORAGE)}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name, alpha in self._with_pattern("alpha", "alpha_pattern").items():
            if not _is_number(alpha) or not 0 < alpha < inf:
                raise ValueError(f"{name} must be a positive number, got {alpha!r}")
        if self.seed is not None and (isinstance(self.seed, bool) or not hasattr(self.seed, "__index__")):
            raise ValueError(f"seed must be an integer or None, got {self.seed!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
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

    def _check_combinations(self) -> None:
        if self.share == "layers" and not self.has_core:
            raise ValueError(
                f"share='layers' needs train to be one of {list(CORED)}, got {self.train!r}: without a core of its own "
                "each layer would have the same update"
            )
        if len(self.rank_shape) == 1 and self.separation_rank != 1:
            raise ValueError(
                "separation_rank must be 1 if rank_shape holds one rank, because A and B are then dense, got "
                f"{self.separation_rank}"
            )
        if self.frames_dtype == "sign" and len(self.rank_shape) > 1:
            raise ValueError(f"frames_dtype='sign' needs one rank in rank_shape, got {list(self.rank_shape)}")
        if self.core == "diagonal" and not (self.has_core and len(self.rank_shape) == 1):
            raise ValueError(
                "core='diagonal' needs train='core' or 'all', and one rank in rank_shape, got "
                f"train={self.train!r} and rank_shape={list(self.rank_shape)}"
            )
        for name, usual in (("frames", OWN), ("frames_dtype", "float32")):
            if self.train != "core" and getattr(self, name) != usual:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs train='core': trained factors belong to the adapter and are "
                    f"in float32, got train={self.train!r}"
                )

    def _with_pattern(self, name: str, pattern: str) -> dict[str, Any]:
        """Return the default value and those of single layers, keyed by their names in error messages."""
        return {
            name: getattr(self, name),
            **{f"{pattern}[{k!r}]": value for k, value in getattr(self, pattern).items()},
        }

    @property
    def start(self) -> str:
        """Name of the initialization; False maps to 'random', from which only its B differs."""
        return self.init_weights if isinstance(self.init_weights, str) else "random"

    @property
    def has_core(self) -> bool:
        """Whether there is a core between A and B."""
        return self.train in CORED

    @property
    def folds(self) -> bool:
        """Whether the initial update is subtracted from the base weights; with a core it is zero."""
        return INITIALIZATIONS[self.start].folds and not self.has_core

    @property
    def needs_examples(self) -> bool:
        """Whether the initialization needs examples."""
        return self.frames == OWN and INITIALIZATIONS[self.start].reads in READERS

    @property
    def is_saved(self) -> bool:
        """Whether the factors are in a file, so that none need to be initialized."""
        return self.resolved is not None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Return the configuration in a folder or hub repository, as PEFT does, and remember the folder."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if isinstance(config, cls) and folder.is_dir():
            config.folder = folder
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration as PEFT does, and replace the empty model card that PEFT has just written."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if card.is_ours(folder):
            held = (
                {"Parameters": f"The file holds {card.stored(folder / WEIGHTS)}"}
                if (folder / WEIGHTS).is_file()
                else {}
            )
            base = self.base_model_name_or_path or card.UNNAMED
            card.Card("LSR", base, self.revision, self.task_type, self.labels, sections=held).write(folder)

    def remember(
        self,
        forms: Mapping[str, Form],
        base_hashes: Mapping[str, str] | None = None,
        frames_hash: str | None = None,
        base_sketch: Mapping[str, tuple[float, ...]] | None = None,
    ) -> None:
        """Set what files record about a created adapter; this object can still configure another model."""
        self._made = Resolved.of(forms, base_hashes or {}, frames_hash, base_sketch)

    def ranks(self, layer_name: str) -> tuple[int, ...]:
        """Return the rank shape of a layer."""
        return override(self.rank_pattern, layer_name, self.rank_shape)

    def terms(self, layer_name: str) -> int:
        """Return the separation rank of a layer: the default if it alone is dense, or alone is not."""
        ranks = self.ranks(layer_name)
        is_usual = (len(ranks) > 1) == (len(self.rank_shape) > 1)  # otherwise no number of terms was chosen for it
        usual = cast("int", self.separation_rank) if is_usual else usual_terms(ranks)
        return override(self.separation_rank_pattern, layer_name, usual)

    def scaling(self, layer_name: str, form: Form) -> float:
        """Return the scaling of a layer's update, alpha / r.

        With a diagonal core it is alpha / 8: the directions are independent, however many there are.
        """
        alpha = override(self.alpha_pattern, layer_name, self.alpha)
        return alpha / (DIAGONAL if self.core == "diagonal" else form.rank)

    def with_ranks(self, ranks: Mapping[str, int]) -> "LsrConfig":
        """Return the configuration of an adapter with dense frames of these ranks, on these layers only."""
        usual, others = _most_frequent({name: (rank,) for name, rank in ranks.items()})
        return replace(
            self,
            rank_shape=usual,
            separation_rank=1,
            separation_rank_pattern={},
            rank_pattern=_as_pattern(others),
            alpha_pattern={
                key: alpha
                for key, alpha in self.alpha_pattern.items()
                if any(get_pattern_key([key], name) == key for name in ranks)
            },
            target_modules=list(ranks),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )

    def with_layers(self, forms: Mapping[str, Form], scalings: Mapping[str, float]) -> "LsrConfig":
        """Return the configuration of an adapter with existing factors, of these shapes and scalings by layer.

        The most frequent values become the defaults; a pattern for each other layer matches only that layer.
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
            core="full",
            share="none",
            frames=OWN,
            frames_dtype="float32",
            in_shape=None,
            out_shape=None,
            resolved=Resolved.of(forms, {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with sets as sorted lists, so that every process writes the same file."""
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}
        if self._made is not None:
            fields["resolved"] = asdict(self._made)
        if self.modules_to_save:  # PEFT appends the names of common heads each time an adapter is loaded
            fields["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        return fields


def usual_terms(rank_shape: Sequence[int]) -> int:
    """Return the default separation rank."""
    return TERMS if len(rank_shape) > 1 else 1


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return the value of a pattern of the configuration for a layer, or the default."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def _as_sizes(name: str, values: object) -> tuple[int, ...]:
    """Return a sequence of numbers as a tuple, with numpy's integers as Python's.

    Raises:
        ValueError: if it is no list or tuple; names the field.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list or tuple of numbers, got {values!r}")
    return tuple(index(v) if hasattr(v, "__index__") and not isinstance(v, bool) else v for v in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _most_frequent(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """Return the most frequent value, and those of the other layers by name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {name: value for name, value in values.items() if value != usual}


def _as_pattern(values: Mapping[str, Value]) -> dict[str, Value]:
    return {re.escape(name): value for name, value in values.items()}
