"""Validate the options of an LsrConfig: their values, their combinations, and their patterns for layers.

A pattern has values for single layers by their names, endings of names or regular expressions. It may be untrusted, and
some expressions take years to match: so only expressions that are fast to match are allowed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from re import _parser  # type: ignore[attr-defined]
from statistics import mode
from typing import TYPE_CHECKING, Any, TypeVar

from lsr.init import INITIALIZATIONS

if TYPE_CHECKING:
    from lsr.tuner.config import LsrConfig

Value = TypeVar("Value")
Fields = Mapping[str, Any]  # fields of a configuration or of another JSON object

CORED = ("core", "all")  # the values of `train` that add a core
CHOICES = {
    "train": ("factors", *CORED),
    "core": ("full", "diagonal"),
    "share": ("none", "layers"),
    "bias": ("none", "all", "lsr_only"),
}
FORMER_NAMES = {"warm": "warm_start", "update": "lora_update"}  # present name of an initialization by its former one
PATTERNS = ("rank_pattern", "alpha_pattern")  # one for each value of single layers
TERMS = 16  # the default separation rank of two factors
LARGEST_ALPHA = 1e30  # it multiplies products in float32, which ends at 3e38
# Of a configuration of any method: what PEFT matches with names, how often and in how many ways it may do so at most.
PLACES = re.compile("pattern|modules|parameters|svd_config")
MAX_ENTRIES = 2_000
MAX_WAYS = 100_000
WIDTH = 60  # about the length of a layer's name
DEEPEST = 20
MAX_CHARACTERS = 500_000  # limit to a pattern: this many characters take a second to compile
# What matches one character, by the names of re's parser.
SINGLE = (
    "LITERAL",
    "NOT_LITERAL",
    "ANY",
    "IN",
)


def check_options(config: "LsrConfig") -> None:
    """Check a configuration, whose values already have the right types.

    Raises:
        ValueError: names the field and what is allowed.
    """
    for name, shape in _with_pattern(config, "rank_shape", "rank_pattern"):
        if len(shape) not in (1, 2) or not all(map(_is_count, shape)):
            raise ValueError(f"{name} must hold one or two ranks >= 1, got {list(shape)}")
        if config.has_core and len(shape) > 1:  # a core is between dense bases
            raise ValueError(f"train={config.train!r} needs one rank in {name}, got {list(shape)}")
    for name, alpha in _with_pattern(config, "alpha", "alpha_pattern"):
        if not isinstance(alpha, int | float) or not 0 < alpha <= LARGEST_ALPHA:
            raise ValueError(f"{name} must be a positive number of at most {LARGEST_ALPHA:.0e}, got {alpha!r}")
    if not _is_count(config.separation_rank):
        raise ValueError(f"separation_rank must be >= 1, got {config.separation_rank!r}")
    dropout = config.dropout
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    init_weights = config.init_weights
    if init_weights in FORMER_NAMES:
        present = FORMER_NAMES[init_weights]
        place = "in a file adapter_config.json"
        raise ValueError(f"init_weights: {init_weights!r} is now called {present!r}; change it, {place}")
    if not isinstance(init_weights, bool) and init_weights not in INITIALIZATIONS:
        raise ValueError(f"init_weights must be a bool or one of {[*INITIALIZATIONS]}, got {init_weights!r}")
    for name, values in CHOICES.items():
        value = getattr(config, name)
        if value not in values:
            raise ValueError(f"{name} must be one of {list(values)}, got {value!r}")
    check_patterns(vars(config))
    _check_together(config)


def _check_together(config: "LsrConfig") -> None:
    targets = config.target_modules
    if isinstance(targets, str) and targets != "all-linear":
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} needs target_modules to be a list, got the pattern {targets!r}")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("layers_pattern needs layers_to_transform, got None")
    if config.has_core:
        return
    for name, value in (("share", "layers"), ("core", "diagonal")):  # layers that share are all alike without a core
        if getattr(config, name) == value:
            raise ValueError(f"{name}={value!r} needs train to be one of {list(CORED)}, got {config.train!r}")


def _with_pattern(config: "LsrConfig", name: str, pattern: str) -> Iterable[tuple[str, Any]]:
    """Yield the default value and the values of single layers, each with its name for error messages."""
    yield name, getattr(config, name)
    for key, value in getattr(config, pattern).items():
        yield f"{pattern}[{key!r}]", value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def default_separation_rank(rank_shape: Sequence[int]) -> int:
    """Return the default separation rank."""
    return TERMS if len(rank_shape) > 1 else 1


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return the value for a layer: of the first pattern that matches, by PEFT's rule, or the default."""
    for key, value in pattern.items():
        if matches(key, layer_name):
            return value
    return usual


def usual_and_others(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """Return the most common value of layers (ties go to the first), and the other values by layer."""
    usual = mode(values.values())
    others = {name: value for name, value in values.items() if value != usual}
    return usual, others


def exact_patterns(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of layers by patterns that match exactly one name each."""
    return {f"^{re.escape(name)}": value for name, value in values.items()}


def matches(pattern: str, layer_name: str) -> bool:
    """Return whether a pattern matches a layer, by PEFT's rule: at the end of its name."""
    return _compile_pattern(pattern).match(layer_name) is not None


@lru_cache(maxsize=2 * MAX_ENTRIES)
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def check_patterns(fields: Fields) -> None:
    """Reject patterns in a configuration, of any PEFT method, that could take long to match.

    Allowed are names, dots, characters, alternatives in groups, and repetitions of single characters; nested
    repetitions, lookahead and lookbehind are not.

    Raises:
        ValueError: names the field and the pattern.
    """
    ways = 0
    for field, value in fields.items():
        if not PLACES.search(field):
            continue
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple | set | dict):
            continue
        length = sum(map(len, map(str, entries)))
        is_long = len(entries) > MAX_ENTRIES or length > MAX_CHARACTERS
        if is_long and isinstance(value, str | dict):
            most = f"at most {MAX_ENTRIES:,} of {MAX_CHARACTERS:,} are allowed"
            raise ValueError(f"{field}: {len(entries):,} patterns of {length:,} characters; {most}")
        for entry in entries:
            if isinstance(entry, str):
                ways += _ways(entry)
            if ways > MAX_WAYS:
                allowed = "names, dots, digits and (one|other), with few * and +, and none of a group"
                raise ValueError(f"{field}: {entry[:80]!r} is not a valid regular expression of {allowed}")


def _ways(pattern: str) -> int:
    """Return an upper bound of the ways in which a pattern can match a name; MAX_WAYS + 1 if higher or not allowed."""
    try:
        parsed = _parser.parse(pattern)  # the parser of re, so that patterns are read as re matches them
    except (re.error, RecursionError, OverflowError):
        return MAX_WAYS + 1
    if parsed.state.flags != re.UNICODE:
        return MAX_WAYS + 1
    return _ways_of(parsed)


def _ways_of(parsed: Any, depth: int = 0) -> int:
    if depth > DEEPEST:
        return MAX_WAYS + 1
    ways = 1
    for opcode, node in parsed:
        match opcode.name:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN" | "AT":
                pass
            case "SUBPATTERN" if node[1] == node[2] == 0:  # a group that sets no flags
                ways *= _ways_of(node[3], depth + 1)
            case "BRANCH":
                ways *= _ways_of_one(node[1], depth + 1)
            case "MAX_REPEAT" | "MIN_REPEAT":
                ways *= _ways_of_repeat(depth + 1, *node)
            case _:
                return MAX_WAYS + 1
        ways = min(ways, MAX_WAYS + 1)
    return ways


def _ways_of_repeat(depth: int, least: int, most: int, repeated: Any) -> int:
    """Return in how many ways a repetition can match: of a single character, or of any pattern at most once."""
    if len(repeated) == 1 and repeated[0][0].name in SINGLE:
        return max(1, min(most, WIDTH) - least + 1)
    if (least, most) == (0, 1):
        return 1 + _ways_of(repeated, depth)
    return MAX_WAYS + 1


def _ways_of_one(branches: Any, depth: int) -> int:
    """Return in how many ways alternatives can match: if they begin with different letters, only one can."""
    any_way = 0
    by_letter = Counter[int]()
    for branch in branches:
        ways = _ways_of(branch, depth)
        opcode, letter = branch[0] if len(branch) else (None, 0)
        if opcode is not None and opcode.name == "LITERAL":
            by_letter[letter] += ways
        else:
            any_way += ways
    return any_way + max(by_letter.values(), default=0)
