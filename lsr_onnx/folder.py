"""The layout of the folder that `lsr export --to onnx` writes: its files, and the outputs of each tenant."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lsr_onnx.errors import InputError, wrap_errors

FLOAT32 = "onnx/model.onnx"
INT8 = "onnx/model_quantized.onnx"
GRAPHS = {"onnx": FLOAT32, "onnx-int8": INT8}  # file of the graph by runtime
TOKENIZER = "tokenizer.json"
TASK = "task.json"  # the note of a single task
TENANTS = "tenants.json"  # replaces task.json: the notes of the tenants of a bank
REMEDY = "needed: a folder that `lsr export --to onnx` has written"
NEEDED = "must have outputs, [FIRST, END], and a task"
MAX_TENANTS_BYTES = 64 << 20
MAX_OUTPUTS = 2_000_000
DEEPEST = 50  # values within values: far more than any file of settings has, and less than Python's stack holds


class Tenant(NamedTuple):
    """The outputs [first, end) of a tenant, and the contents of its task.json."""

    first: int
    end: int
    task: dict[str, Any]


def has_tenants(folder: Path) -> bool:
    """Return whether a folder has the graphs of a bank."""
    return (folder / TENANTS).is_file()


def has_graphs(folder: Path) -> bool:
    """Return whether a folder has graphs instead of an adapter or a bank."""
    return any((folder / graph).is_file() for graph in GRAPHS.values())


def check_no_graphs(folder: Path) -> None:
    """Check that a folder does not have graphs, which torch cannot run.

    Raises:
        InputError: if it has; names the runtimes for graphs.
    """
    if has_graphs(folder):
        raise InputError(f"{folder}: holds graphs in ONNX; needed: --runtime {' or '.join(GRAPHS)}")


def check_files(folder: Path, runtime: str) -> None:
    """Check that a folder has the files that a runtime needs.

    Raises:
        InputError: if a file is missing; names the first.
    """
    note = TENANTS if has_tenants(folder) else TASK
    for name in (GRAPHS[runtime], TOKENIZER, note):
        if not (folder / name).is_file():
            raise InputError(f"--runtime {runtime}: {folder} has no {name}; {REMEDY}")


def tenants_as_json(tenants: Mapping[str, Tenant]) -> str:
    """Encode tenants as the contents of tenants.json."""
    content = {}
    for name, tenant in tenants.items():
        content[name] = {"outputs": [tenant.first, tenant.end], "task": tenant.task}
    return json.dumps(content, sort_keys=True) + "\n"


def read_tenants(folder: Path) -> dict[str, Tenant]:
    """Return the tenants of the graphs in a folder, by name.

    Raises:
        InputError: if the file is too large or not JSON, or a tenant has no outputs.
    """
    path = folder / TENANTS
    content = read_json(path, MAX_TENANTS_BYTES)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: must be an object with an entry for each tenant")
    tenants = {}
    for name, entry in content.items():
        tenants[name] = _tenant_of(entry, f"{path}: {name!r:.60}")
    return tenants


def read_json(path: Path, most: int) -> Any:
    """Return the value in a JSON file of at most this many bytes.

    Raises:
        InputError: if it cannot be read, is too large or is not JSON; names the file.
    """
    with wrap_errors(path, OSError, ValueError, RecursionError):
        size = path.stat().st_size
        if size > most:
            raise InputError(f"has {size:,} bytes; at most {most:,} are allowed")
        return json.loads(path.read_text(encoding="utf-8"))


def is_deeper(content: Any, deepest: int = DEEPEST) -> bool:
    """Return whether values are nested more than `deepest` levels deep, also by YAML's aliases, which may be cyclic."""
    level: list[Any] = [[content]]
    for _ in range(deepest + 1):
        inner = dict[int, Any]()  # each value once, although aliases may repeat it
        for outer in level:
            values = outer.values() if isinstance(outer, dict) else outer
            for value in values:
                if value and isinstance(value, dict | list):
                    inner[id(value)] = value
        level = list(inner.values())
    return bool(level)


def _tenant_of(entry: Any, where: str) -> Tenant:
    if not isinstance(entry, dict) or entry.keys() != {"outputs", "task"}:
        raise InputError(f"{where}: {NEEDED}")
    outputs = entry["outputs"]
    task = entry["task"]
    if not isinstance(outputs, list) or not isinstance(task, dict):
        raise InputError(f"{where}: {NEEDED}")
    if [type(number) for number in outputs] != [int, int]:
        raise InputError(f"{where}: {NEEDED}")
    first, end = outputs
    if not 0 <= first < end <= MAX_OUTPUTS:
        raise InputError(f"{where}: outputs must be at least one, from 0 to {MAX_OUTPUTS:,}, got {first} to {end}")
    return Tenant(first, end, task)
