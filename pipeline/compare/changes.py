"""The changes of a training to params.yaml, as arguments of `dvc exp run -S`."""

import json
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

OPEN = "peft.options."  # keys that params.yaml may lack


def changes(values: Mapping[str, JsonValue]) -> list[str]:
    """Return KEY=VALUE for each dotted key; an object yields one for each of its keys."""
    return [f"{key}={_word(value)}" for key, value in _flat(values)]


def _flat(values: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat({f"{key}.{inner}": one for inner, one in value.items()})
        else:
            yield f"++{key}" if key.startswith(OPEN) else key, value


def _word(value: JsonValue) -> str:
    """Return a value as Hydra reads it: JSON, except for strings, which are quoted only if necessary."""
    if isinstance(value, str):
        plain = value and all(letter.isalnum() or letter in "-_./" for letter in value)
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return json.dumps(value)
