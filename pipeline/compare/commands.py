"""How a row of the tables is run again: what it sets in params.yaml, and the line that does so."""

import shlex
from io import StringIO

from pydantic import JsonValue
from ruamel.yaml import YAML

from pipeline.arena.changes import changes
from pipeline.arena.record import Record


def settings(record: Record) -> dict[str, JsonValue]:
    """Return what a training sets in params.yaml, by dotted keys."""
    found: dict[str, JsonValue] = {"data": record.task, "adapter": record.adapter, **record.overrides}
    if record.rate is not None:
        found[f"{record.adapter}.learning_rate"] = record.rate
    return found | {"train.head_learning_rate": record.head_rate, "seed": record.seed}


def command(record: Record) -> str:
    """Return the line that runs a training as an experiment of DVC's, for a shell."""
    changed = changes(settings(record))
    return shlex.join(["dvc", "exp", "run", *(word for change in changed for word in ("-S", change))])


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
