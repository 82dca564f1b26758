"""By which names a configuration chooses layers and their values: names, endings of names or regular expressions."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from peft.utils.other import get_pattern_key

Value = TypeVar("Value")

WHOLE = ("target_modules", "exclude_modules")  # fields that hold one regular expression, unless they are lists
MATCHED = ("layers_pattern", "modules_to_save")  # one or several
PATTERNS = ("rank_pattern", "separation_rank_pattern", "alpha_pattern")  # one for each value of single layers
REPEATS = re.compile(r"[*+?{(\[]")  # in a pattern, unless escaped


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return the value of a pattern of the configuration for a layer, or the default."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def exactly(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of layers by patterns, of which each matches only the layer of that name."""
    return {f"^{re.escape(name)}": value for name, value in values.items()}


def matches(pattern: str, layer_name: str) -> bool:
    """Return whether a pattern for values of single layers matches a layer, by PEFT's rule: at its end."""
    return re.match(rf"(.*\.)?({pattern})$", layer_name) is not None


def any_of(names: Iterable[str]) -> str:
    """Return an expression that matches just these names."""
    return "|".join(map(re.escape, names))


def patterns_in(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the regular expressions of a configuration, each after its field."""
    for field in (*WHOLE, *MATCHED, *PATTERNS):
        value = fields.get(field)
        if isinstance(value, str):
            yield field, value
        elif field not in WHOLE and isinstance(value, list | tuple | dict):  # a list of targets holds endings of names
            yield from ((field, word) for word in value if isinstance(word, str))


def is_plain(pattern: str) -> bool:
    """Return whether a pattern is a name, or a choice of names, so that matching it always ends soon."""
    return not REPEATS.search(re.sub(r"\\.", "", pattern))


def check_plain(fields: Mapping[str, Any]) -> None:
    """Refuse patterns in a file that others may have written: some never finish, and nothing can stop them.

    Raises:
        ValueError: names the field and the pattern.
    """
    for field, pattern in patterns_in(fields):
        if not is_plain(pattern):
            raise ValueError(
                f"{field}: {pattern!r} is a pattern; in an adapter's file only the names of layers are read"
            )
