"""The values that the options of an LsrConfig may have, how they go together, and for which layers they are.

A pattern holds values of single layers by their names, endings of names or regular expressions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from peft.utils.other import get_pattern_key

from lsr.init import INITIALIZATIONS

if TYPE_CHECKING:
    from lsr.tuner.config import LsrConfig

Value = TypeVar("Value")

SHARED = ("none", "layers")
CORED = ("core", "all")  # the values of `train` that add a core
TRAINED = ("factors", *CORED)
OWN = "own"
PATTERNS = ("rank_pattern", "alpha_pattern")  # one for each value of single layers
TERMS = 16  # the default separation rank of two factors
LARGEST_ALPHA = 1e30  # it multiplies products in float32, which ends at 3e38


def check_options(config: "LsrConfig") -> None:
    """Check a configuration, whose values have the types that it gives them."""
    _check_numbers(config)
    _check_words(config)
    _check_layers(config)
    _check_families(config)


def _check_numbers(config: "LsrConfig") -> None:
    for name, shape in _with_pattern(config, "rank_shape", "rank_pattern"):
        if len(shape) not in (1, 2) or not all(map(_is_count, shape)):
            raise ValueError(f"{name} must hold one or two ranks >= 1, got {list(shape)}")
    if not _is_count(config.separation_rank):
        raise ValueError(f"separation_rank must be >= 1, got {config.separation_rank!r}")
    for name, alpha in _with_pattern(config, "alpha", "alpha_pattern"):
        if not isinstance(alpha, int | float) or not 0 < alpha <= LARGEST_ALPHA:
            raise ValueError(f"{name} must be a positive number of at most {LARGEST_ALPHA:.0e}, got {alpha!r}")
    if not isinstance(config.dropout, int | float) or not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout!r}")


def _check_words(config: "LsrConfig") -> None:
    if not isinstance(config.init_weights, bool) and config.init_weights not in INITIALIZATIONS:
        raise ValueError(f"init_weights must be a bool or one of {list(INITIALIZATIONS)}, got {config.init_weights!r}")
    words = {
        "train": TRAINED,
        "core": ("full", "diagonal"),
        "share": SHARED,
        "bias": ("none", "all", "lsr_only"),
    }
    for name, allowed in words.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(config, name)!r}")


def _check_layers(config: "LsrConfig") -> None:
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} needs target_modules to be a list, got the pattern {config.target_modules!r}")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("layers_pattern needs layers_to_transform, got None")


def _check_families(config: "LsrConfig") -> None:
    # Separable sums, or a core between dense frames.
    for name, shape in _with_pattern(config, "rank_shape", "rank_pattern"):
        if config.has_core and len(shape) > 1:
            raise ValueError(
                f"train={config.train!r} needs one rank in {name}, because a core is between dense frames, got "
                f"{list(shape)}"
            )
    if len(config.rank_shape) == 1 and config.separation_rank != 1:
        raise ValueError(
            "separation_rank must be 1 if rank_shape holds one rank, because A and B are then dense, got "
            f"{config.separation_rank}"
        )
    if config.share == "layers" and not config.has_core:
        raise ValueError(
            f"share='layers' needs train to be one of {list(CORED)}, got {config.train!r}: without a core of its own "
            "each layer would have the same update"
        )
    if config.core == "diagonal" and not config.has_core:
        raise ValueError(f"core='diagonal' needs train='core' or 'all', got train={config.train!r}")
    if config.train != "core" and config.frames != OWN:
        raise ValueError(
            f"frames={config.frames!r} needs train='core': trained factors belong to the adapter, got "
            f"train={config.train!r}"
        )


def _with_pattern(config: "LsrConfig", name: str, pattern: str) -> Iterable[tuple[str, Any]]:
    """Return the default value and those of single layers, each after its name in error messages."""
    single = ((f"{pattern}[{key!r}]", value) for key, value in getattr(config, pattern).items())
    return ((name, getattr(config, name)), *single)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def usual_terms(rank_shape: Sequence[int]) -> int:
    """Return the default separation rank."""
    return TERMS if len(rank_shape) > 1 else 1


def as_sizes(name: str, values: object) -> tuple[int, ...]:
    """Return a sequence of numbers as a tuple.

    Raises:
        ValueError: if it is no list or tuple; names the field.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list or tuple of numbers, got {values!r}")
    return tuple(values)


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return the value of a pattern of the configuration for a layer, or the default."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def exactly(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of layers by patterns, of which each matches only the layer of that name."""
    return {f"^{re.escape(name)}": value for name, value in values.items()}


def matches(pattern: str, layer_name: str) -> bool:
    """Return whether a pattern for values of single layers matches a layer, by PEFT's rule: at its end."""
    return re.match(rf"(.*\.)?({pattern})$", layer_name) is not None
