"""The kit of every test: one `refused`, one `write`, `said` for a command that works, and memory of processes.

A workspace whose four stages have run is what the fixture `after` gives (tests/conftest.py); `workspace.make` makes one
in which nothing has run.
"""

import csv
import hashlib
import io
import json
import os
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from lsr.errors import InputError
from pipeline.core.errors import UserError

MISTAKES = (UserError, InputError)  # the errors of which commands and stages print the message alone
MISTAKE = 2  # exit status
LONGEST = 330  # characters of a line, with the name of a command before it
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes


def ended(call, *arguments, **options):
    """Return the exit status of a call, or what it returns, and what it prints on both streams."""
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = call(*arguments, **options)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def refused(call, *arguments, says="", kind=MISTAKES, lines=1, **options):
    """Return the one line with which a call is refused: its error's message, or what a command prints and exits with 2.

    It must hold the words `says`. A traceback, a second line, a very long one, or something on standard output is a
    failure, and so is a call that goes through. `kind` is another error than those of MISTAKES; `lines` another number.
    """
    try:
        status, out, text = ended(call, *arguments, **options)
        assert isinstance(status, int), "it is not refused"
        assert (status, out) == (MISTAKE, ""), text
    except kind as error:
        text = str(error)
    printed = text.splitlines()
    assert len(printed) == lines, text
    assert all(0 < len(line) <= (LONGEST if kind == MISTAKES else 3 * LONGEST) for line in printed), text
    assert says in text, text
    return text.strip()


def said(command, *words):
    """Return what a command prints on standard output that should work."""
    status, out, err = ended(command, list(words))
    assert status in (None, 0), err
    return out


def table(source):
    """Return the rows of a CSV, which is a file or the text of one, as dictionaries by column."""
    text = source.read_bytes().decode("utf-8") if isinstance(source, Path) else source
    return list(csv.DictReader(io.StringIO(text, newline="")))


def write(path, content):
    """Write a small file by its extension, with the folders above it, and return its path.

    Text and bytes are written as they are, whatever the extension. Otherwise json and yaml take a value, safetensors
    takes tensors by name, and csv, tsv, jsonl and parquet take rows: dictionaries by column.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    else:
        WRITERS[path.suffix](path, content)
    return path


def write_yaml(path, content):
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(content, file)


WRITERS = {
    ".json": lambda path, value: path.write_text(json.dumps(value), encoding="utf-8"),
    ".yaml": write_yaml,
    ".safetensors": lambda path, tensors: save_file(tensors, path, metadata={"format": "pt"}),
    ".csv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False),
    ".tsv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False, sep="\t"),
    ".jsonl": lambda path, rows: path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8"),
    ".parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path, index=False),
}


def edit(path, change=None, **keys):
    """Change the content of a JSON or safetensors file by a function, or set these keys in it.

    The function changes the dictionary that it is given, or returns another one.
    """
    path = Path(path)
    content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text(encoding="utf-8"))
    if change is not None:
        changed = change(content)
        content = content if changed is None else changed
    return write(path, content | keys)


def growth(run, ending):
    """By how much the peak of memory of `run`, which takes a file, grows with its texts, as a share of these."""
    peaks = []
    size = 5000
    for count in (100, 400):
        rows = [{"text": f"{number}" + " owl" * (size // 4), "label": number % 2} for number in range(count)]
        path = write(f"{count}.{ending}", rows)
        tracemalloc.start()
        run(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (size * (400 - 100))


def resident(process="self"):
    """Return the bytes that a process, by its id, has in memory."""
    counts = Path(f"/proc/{process}/statm").read_text().split()
    return PAGE * int(counts[1])


def digests(*folders):
    """Return the SHA-256 of every file below folders by its path, to compare what was there with what is."""
    files = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
