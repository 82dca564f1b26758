"""How a row of the tables is run again: what it sets in params.yaml, and the line that does so."""

import json
import shlex
from collections.abc import Iterator, Mapping
from io import StringIO

from pydantic import JsonValue
from ruamel.yaml import YAML

from pipeline.arena.record import Record

OPEN = "peft.options."  # params.yaml need not have these keys


def settings(record: Record) -> dict[str, JsonValue]:
    """Return what a training sets in params.yaml, by dotted keys."""
    found: dict[str, JsonValue] = {"data": record.task, "adapter": record.adapter, **record.overrides}
    if record.rate is not None:
        found[f"{record.adapter}.learning_rate"] = record.rate
    return found | {"train.head_learning_rate": record.head_rate, "seed": record.seed}


def command(record: Record) -> str:
    """Return the line that runs a training as an experiment of DVC's, for a shell."""
    changes = [f"{key}={_word(value)}" for key, value in _flat(settings(record))]
    return shlex.join(["dvc", "exp", "run", *(word for change in changes for word in ("-S", change))])


def snippet(record: Record) -> str:
    """Return what a training sets, as a part of params.yaml."""
    nested: dict[str, JsonValue] = {}
    for key, value in settings(record).items():
        *parents, last = key.split(".")
        inside = nested
        for parent in parents:
            inside = inside.setdefault(parent, {})  # type: ignore[assignment]
        inside[last] = value
    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(nested, text)
    return text.getvalue()


def _flat(values: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat({f"{key}.{inner}": one for inner, one in value.items()})
        else:
            yield f"++{key}" if key.startswith(OPEN) else key, value


def _word(value: JsonValue) -> str:
    """Return a value as Hydra reads it: JSON, but for texts, which are quoted only where they must be."""
    if isinstance(value, str):
        plain = value and all(letter.isalnum() or letter in "-_./" for letter in value)
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return json.dumps(value)
