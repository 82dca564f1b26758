"""By which names a configuration chooses layers and their values: names, endings of names or regular expressions."""

import re
from collections.abc import Mapping
from typing import TypeVar

from peft.utils.other import get_pattern_key

Value = TypeVar("Value")

PATTERNS = ("rank_pattern", "alpha_pattern")  # one for each value of single layers


def override(pattern: Mapping[str, Value], layer_name: str, usual: Value) -> Value:
    """Return the value of a pattern of the configuration for a layer, or the default."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def exactly(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of layers by patterns, of which each matches only the layer of that name."""
    return {f"^{re.escape(name)}": value for name, value in values.items()}


def matches(pattern: str, layer_name: str) -> bool:
    """Return whether a pattern for values of single layers matches a layer, by PEFT's rule: at its end."""
    return re.match(rf"(.*\.)?({pattern})$", layer_name) is not None
