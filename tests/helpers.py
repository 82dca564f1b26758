"""Run commands and stages as a user does, and read and write small files.

Commands and stages run in this process, as `python -m MODULE` does: a test names the module and imports nothing of it.
"""

import csv
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas as pd
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from lsr.errors import InputError

ROOT = Path(__file__).parents[1]
STAGES = ("tokenize", "factorize_init", "train", "evaluate")
MISTAKE = 2  # exit status of a command that rejects its input
LONGEST = 330  # characters of the line that says why, with the name of the command before it


class Ended(NamedTuple):
    """How a command has ended, and what it has printed."""

    status: int
    out: str
    err: str


def run(module: str, *words: object) -> Ended:
    """Run `python -m MODULE WORDS` in this process."""
    arguments = [module, *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    own = (patch.object(sys, "argv", arguments), patch.dict(os.environ))  # a command may set variables for itself
    with redirect_stdout(out), redirect_stderr(err), own[0], own[1]:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int), status
    return Ended(status, out.getvalue(), err.getvalue())


def printed(module: str, *words: object) -> str:
    """Return what a command that should work prints on standard output."""
    ended = run(module, *words)
    assert ended.status == 0, ended.err
    return ended.out


def refused(call: str | Callable[..., object], *arguments: Any, says: str = "", **options: Any) -> str:
    """Return the one line with which a command or a function of lsr rejects its arguments.

    A command, which is a module's name, must end with status 2 and print nothing on standard output; a function must
    raise InputError. The line must contain `says`.
    """
    if isinstance(call, str):
        ended = run(call, *arguments)
        assert (ended.status, ended.out) == (MISTAKE, ""), ended
        text = ended.err
    else:
        text = _message(call, *arguments, **options)
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert 0 < len(lines[0]) <= LONGEST, text
    assert lines[0].isprintable(), text
    assert says in text, text
    return lines[0].strip()


def _message(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    try:
        call(*arguments, **options)
    except InputError as error:
        return str(error)
    raise AssertionError("it is not rejected")


def run_stages(folder: Path, *names: str) -> Path:
    """Run stages, by default all four, in a workspace; return its folder.

    The screen at the end, which is a process of its own, is left out: it takes as long as a stage.
    """
    with chdir(folder):
        for name in names or STAGES:
            python = "true" if name == "evaluate" else sys.executable
            with patch.object(sys, "executable", python):
                printed(f"stages.{name}")
    return folder


def in_new_process(folder: Path, *words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in a folder and a process of its own, which must end with this exit status."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(source: Path | str) -> list[dict[str, str]]:
    """Return the rows of a CSV file, or of its text, as dictionaries by column."""
    text = source.read_bytes().decode("utf-8") if isinstance(source, Path) else source
    return list(csv.DictReader(io.StringIO(text, newline="")))


def write(path: Path, content: Any) -> Path:
    """Write a small file by its extension, with the folders above it, and return its path.

    Text and bytes are written as they are, whatever the extension. Otherwise json and yaml take a value, safetensors
    takes tensors by name, and csv, tsv, jsonl, xlsx and parquet take rows: dictionaries by column.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    else:
        WRITERS[path.suffix](path, content)
    return path


def _write_yaml(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(content, file)


WRITERS: dict[str, Callable[[Path, Any], object]] = {
    ".json": lambda path, value: path.write_text(json.dumps(value), encoding="utf-8"),
    ".yaml": _write_yaml,
    ".safetensors": lambda path, tensors: save_file(tensors, path, metadata={"format": "pt"}),
    ".csv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False),
    ".tsv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False, sep="\t"),
    ".jsonl": lambda path, rows: path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8"),
    ".xlsx": lambda path, rows: pd.DataFrame(rows).to_excel(path, index=False),
    ".parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path, index=False),
}


def edit(path: Path, change: Callable[[Any], Any] | None = None, **keys: Any) -> Path:
    """Change the content of a JSON, YAML or safetensors file by a function, or set these keys in it.

    The function changes the dictionary that it is given, or returns another one.
    """
    readers = {".safetensors": load_file, ".json": read_json, ".yaml": read_yaml}
    content = readers[path.suffix](path)
    if change is not None:
        changed = change(content)
        content = content if changed is None else changed
    return write(path, content | keys)


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed."""
    inner = {key: merge(values.get(key) or {}, new) for key, new in changes.items() if isinstance(new, dict)}
    return values | changes | inner


def change_params(folder: Path, **changes: Any) -> None:
    """Merge changes into the params.yaml of a workspace."""
    path = folder / "params.yaml"
    write(path, merge(read_yaml(path), changes))


def digests(*folders: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below folders by its path, to compare what was there with what is."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
