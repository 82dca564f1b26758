"""How to rerun a row of the tables: its settings in params.yaml, and the command."""

import shlex
from io import StringIO

from pydantic import JsonValue
from ruamel.yaml import YAML

from pipeline.arena.record import Record
from pipeline.compare.changes import changes


def settings(record: Record) -> dict[str, JsonValue]:
    """Return the settings of a training in params.yaml, by dotted key."""
    found: dict[str, JsonValue] = {"data": record.task, "adapter": record.adapter, **record.overrides}
    if record.rate is not None:
        found[f"{record.adapter}.learning_rate"] = record.rate
    return found | {"train.head_learning_rate": record.head_rate, "seed": record.seed}


def command(record: Record) -> str:
    """Return the shell command that runs a training as a DVC experiment."""
    changed = changes(settings(record))
    return shlex.join(["dvc", "exp", "run", *(word for change in changed for word in ("-S", change))])


def snippet(record: Record) -> str:
    """Return the settings of a training as a part of params.yaml."""
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
