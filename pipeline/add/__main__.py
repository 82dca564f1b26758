"""`python -m pipeline.add data/tickets.csv`: infer an entry of data/datasets.yaml from a file.

Its encoding and its delimiter are recognized. Labels that differ in case or space, as Yes and yes, become one, and N/A
and nan stand for no label, unless --keep-labels is given. The entry is checked like any other, and its splits are made
once, before anything is written.
"""

import argparse
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from ruamel.yaml import YAML

from lsr_onnx.errors import some_of
from pipeline.add import column_types
from pipeline.add.columns import Choice, infer_entry, may_be_classes
from pipeline.add.spellings import notes_of_names
from pipeline.core import artifacts, console, git
from pipeline.core.console import Parser, warn_without_identity
from pipeline.core.errors import UserError
from pipeline.data import datasets, opening, recognition, sources
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.reading import check_entries
from pipeline.params.schema import REGISTRIES
from pipeline.params.sources import (
    COMPRESSED,
    EXCEL,
    NAME,
    SEPARATED,
    TEXTUAL,
    Split,
    TableSource,
    ending_of,
)
from pipeline.params.validation import validate
from pipeline.params.yaml_file import parse_yaml, read_yaml
from pipeline.tasks.cells import has_mirrors

OWN = REGISTRIES["data"].own
LOCK = Path(".cache/add.lock")  # not next to the file, because files of that folder are inputs of the pipeline
HEADER = "# Rows of your own data; pipeline/datasets.yaml has more of them, docs/reference/params.md all keys.\n"
LABELS = ("column", "multi_label", "messages", "completion")  # fields of a label that name its column
# Names that `dvc exp run -S data=NAME` takes for a number or nothing.
NO_TEXT = re.compile(r"[-\d_]*(e-?\d+)?|null|true|false|nan|inf", re.IGNORECASE)
USUAL_TENANTS = ("tenant", "customer", "client", "account", "user")


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect files, write their entry, and print the decisions and the next commands.

    Raises:
        UserError: if a file cannot be read or is not in data/, the name is taken, or the entry would not work.
    """
    with _parser().parse(arguments) as options:
        if options.held_out_tenants is not None and options.tenant is None:
            raise UserError("--held-out-tenants: has no effect without --tenant, the column of tenants")
        files = _files(options)
        name = _name(options.name, files["train"])
        _check_new(name, check_entries("data"))
        choice = Choice(options.text, options.label, options.tenant, options.keep_labels)
        source = _source(files, options.encoding, options.sheet)
        tables = {path: _read(path, source, choice) for path in files.values()}
        _check_same_columns(tables, source, choice)
        table = pd.concat(tables.values(), ignore_index=True)
        where = ", ".join(map(str, files.values()))
        sheet = recognition.describe_sheet(source)
        content, notes = infer_entry(table, source, choice, f"{where}, {sheet}" if sheet else where)
        if options.held_out_tenants is not None:
            content["held_out_tenants"] = _share_or_names(options.held_out_tenants)
        loaded = _load(content, name)
        LOCK.parent.mkdir(exist_ok=True)
        with FileLock(LOCK):  # another command may add an entry at the same time
            _append(name, content)
        console.line(f"{OWN}: added {name}: {len(table):,} rows of {where}")
        _show(table, loaded, notes, recognition.words_of(source))
        _show_commands(name, list(files.values()), loaded)


def _parser() -> Parser:
    parser = Parser(
        "python -m pipeline.add",
        "Register a file as a data set: infer its encoding, columns, labels, metrics and splits, and write an entry to "
        f"{OWN}, which you can edit. Nothing is written if the file or the entry is invalid.",
    )
    add = parser.add_argument
    formats = "CSV, TSV, JSONL, JSON, XLSX or Parquet file in data/; text formats also compressed (gz, bz2, xz, zst)"
    add("file", metavar="FILE", help=formats)
    add("--validation", metavar="FILE", help="file with the validation split (default: a part of FILE)")
    add("--test", metavar="FILE", help="file with the test split (default: a part of FILE)")
    columns = "column with the text, or two columns for text pairs (default: inferred)"
    add("--text", nargs="+", action="extend", default=[], metavar="COLUMN", help=columns)
    add("--label", metavar="COLUMN", help="column to predict (default: inferred)")
    add("--tenant", metavar="COLUMN", help="column with the tenant, if each has its own labels (default: no tenants)")
    unseen = "tenants to keep for test: evaluate scores the model on them with no labels and with a few"
    which = f"share, such as 0.2, or names of {unseen} (default: none)"
    add("--held-out-tenants", nargs="+", metavar="TENANT", help=which)
    separate = "keep labels that differ only in case or space separate, and take N/A and nan as labels"
    add("--keep-labels", action="store_true", help=separate)
    add("--encoding", metavar="NAME", help="encoding of the files, such as cp1252 (default: detected)")
    add("--sheet", metavar="NAME", help="sheet of an XLSX file (default: the first)")
    add("--name", help="name of the data set (default: from the name of FILE)")
    return parser


def _files(options: argparse.Namespace) -> dict[Split, Path]:
    """Return the given files by their splits.

    Raises:
        UserError: if one is not in data/.
    """
    given: dict[Split, str | None] = {
        "train": options.file,
        "validation": options.validation,
        "test": options.test,
    }
    files = dict[Split, Path]()
    for split, file in given.items():
        if file is None:
            continue
        path = Path(os.path.relpath(file))
        if not path.is_relative_to(OWN.parent):
            raise UserError(f"{file}: DVC notices changes only in data/; move the file, or a link to it, there")
        files[split] = path
    return files


def _name(given: str | None, path: Path) -> str:
    """Return the name of the entry: the given one, or one derived from the file's.

    Raises:
        UserError: if it is not valid, or none can be derived.
    """
    if given is not None:
        if not re.fullmatch(NAME, given):
            raise UserError(f"--name: a name has only letters, digits, - and _, got {given}")
        if NO_TEXT.fullmatch(given):
            raise UserError(f"--name: `dvc exp run -S data={given}` does not read it as a name; choose another")
        return given
    stem = path.with_suffix("").stem if path.suffix.lower() in COMPRESSED else path.stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")
    if not name:
        raise UserError(f"{path}: its name has no letter to name the data set; choose a name with --name")
    return f"data-{name}" if NO_TEXT.fullmatch(name) else name


def _source(files: Mapping[Split, Path], encoding: str | None, sheet: str | None) -> TableSource:
    """Return the source of the files, with the recognized encoding and delimiter.

    Raises:
        UserError: if a file cannot be read, the files differ in encoding or delimiter, or an option has no effect.
    """
    recognition.check_options(files.values(), encoding, sheet)
    parts = dict[Split, TableSource]()
    for split, path in files.items():
        of_text = encoding if ending_of(path) in TEXTUAL else None
        of_excel = sheet if ending_of(path) == EXCEL else None
        with sources.wrap_reading_errors(str(path)):
            parts[split] = recognition.source_of(path, of_text, of_excel)
    return recognition.join_sources(parts)


def _read(path: Path, source: TableSource, choice: Choice) -> pd.DataFrame:
    """Read the table in a file; columns of running text that are not chosen are read only in part.

    Raises:
        UserError: if it cannot be read, or has no rows.
    """
    alone = source.model_copy(update={"files": {"train": path.as_posix()}})
    tables = sources.values(alone, str(path), flat=True)
    first = next(tables)
    if first.empty:
        raise UserError(f"{path}: {_without_rows(path)}")
    running = list[str]()
    for name in first:
        column = first[name]
        is_chosen = name in (choice.label, choice.tenant)
        if not is_chosen and column_types.is_running_text(column) and not may_be_classes(column):
            running.append(name)
    empty = dict.fromkeys(running)  # text that memory need not hold
    return pd.concat([first, *(table.assign(**empty) for table in tables)])


def _check_same_columns(tables: Mapping[Path, pd.DataFrame], source: TableSource, choice: Choice) -> None:
    """Check that all tables have the columns that are read of the first one.

    Raises:
        UserError: if one lacks a column, with its file; or as of `infer_entry`.
    """
    (train, first), *others = tables.items()
    for path, table in others:
        if set(first) <= set(table):
            continue
        content, _ = infer_entry(first, source, choice, str(train))
        read = [*content.get("text", []), *filter(None, [choice.tenant])]
        read += [content["label"][key] for key in LABELS if key in content["label"]]
        sources.check_columns(table.columns, read, str(path))


def _load(content: dict[str, Any], name: str) -> datasets.Loaded:
    """Return the data of an entry, which is stratified if no text has a hash in the share of a split.

    All texts of a file can have hashes in the share of train, for example of one with the train split of another run.

    Raises:
        EmptySplitError: if a split is empty nevertheless.
    """
    try:
        return datasets.load(_entry_of(content, name), name)
    except datasets.EmptySplitError:
        if not _entry_of(content, name).may_stratify:
            raise
    content["stratify"] = True
    return datasets.load(_entry_of(content, name), name)


def _entry_of(content: Mapping[str, Any], name: str) -> DatasetEntry:
    entry = validate(DatasetEntry, content, OWN, (name,))
    entry._where = str(OWN)
    return entry


def _without_rows(path: Path) -> str:
    if ending_of(path) in (*SEPARATED, EXCEL):
        with opening.open_bytes(path) as file:
            if file.read(1000).strip():
                return "no row below the line with the names of columns; needed: rows with a text and a label"
    return "the file is empty; needed: rows with a text and a label"


def _is_read_as(text: str, rows: Mapping[str, Any]) -> bool:
    """Return whether YAML reads a text as these rows; control characters can end lines."""
    try:
        return parse_yaml(text.encode(), OWN) == rows
    except UserError:
        return False


def _check_new(name: str, names: Collection[str]) -> None:
    if name in names:
        raise UserError(f"--name: there is an entry {name} already; choose another, or remove it if it is in {OWN}")


def _append(name: str, entry: dict[str, Any]) -> None:
    # Add an entry at the end of the file, whose other lines stay as they are.
    rows = {name: entry}
    dumped = StringIO()
    YAML().dump(rows, dumped)
    if not _is_read_as(dumped.getvalue(), rows):
        raise UserError(f"{OWN}: a name has characters that YAML cannot hold; change it in the data")
    known = {}
    before = HEADER
    if OWN.exists():
        known = read_yaml(OWN)
        before = OWN.read_text(encoding="utf-8")
    _check_new(name, known)
    with artifacts.replace_atomically(OWN) as new:
        new.write_text(f"{before.rstrip()}\n{dumped.getvalue()}", encoding="utf-8")
        try:
            is_added = read_yaml(new) == known | rows
        except UserError:
            is_added = False
        if not is_added:
            at_end = "cannot append an entry; write one key per line, without braces"
            raise UserError(f"{OWN}: {at_end}")


def _share_or_names(given: Sequence[str]) -> float | list[str]:
    """Return what holds out tenants: a single number between 0 and 1 is a share of them, anything else their names."""
    if len(given) == 1:
        with suppress(ValueError):
            share = float(given[0])
            if 0 < share < 1:
                return share
    return list(given)


def _show(table: pd.DataFrame, loaded: datasets.Loaded, notes: Mapping[str, str], written: str) -> None:
    """Print the decisions about a table; `written` describes an unusual encoding or delimiter of its file."""
    description = loaded.task.description
    entry = loaded.task.entry
    splits = loaded.splits
    labels = np.concatenate([split["label"] for split in splits.values()])
    shown = {
        "text": " and ".join(entry.text) + (", read together" if len(entry.text) > 1 else ""),
        "label": f"{entry.label.column}, {description.of_data(labels)}",
        "scores": ", ".join(f"{metric}{description.of_class(metric)}" for metric in entry.metrics),
        "splits": _sizes(loaded, len(table)),
        **notes,
    }
    held_out = loaded.task.facts.held_out
    shown |= notes_of_names([*loaded.task.facts.tenants, *held_out], "tenants")
    if held_out:
        count = len(held_out) + len(loaded.task.facts.tenants)
        how = ", by a hash of the name" if isinstance(entry.held_out_tenants, float) else ""
        shown["unseen"] = f"{len(held_out)} of {count} tenants{how}: {some_of(list(held_out))}"
    if loaded.shared:
        shown["shared"] = loaded.describe_shared()
    if written:
        shown["file"] = f"read as {written}"
    named = [column for column in table if column.casefold() in USUAL_TENANTS]
    may_have_tenants = "tenant" in entry.label.compatible_keys
    if entry.tenant is None and named and may_have_tenants:
        column = quote(named[0])
        shown["tenants"] = f"none; if the column {column} has the tenant of each row: --tenant {column}"
    rare = description.rare(splits["train"]["label"])
    if rare:
        shown["rare"] = rare
    absent = list[str]()
    for split, examples in splits.items():
        names = description.absent(examples["label"])
        if names:
            absent.append(f"{split} has no {some_of(names)}")
    if absent:
        shown["absent"] = f"{'; '.join(absent)}: no score of it sees them"
    for heading, decided in shown.items():
        console.line(f"  {heading:8}{decided}")


def _show_commands(name: str, files: Sequence[Path], loaded: datasets.Loaded) -> None:
    """Print the commands that come next."""
    console.line(f"To change it, edit {OWN}, or remove the entry there and give --text, --label, --tenant or --name")
    for line in _to_keep(files):
        console.line(line)
    more = loaded.task.description.first_change
    console.line(f"To train: dvc exp run -S data={name} -S {more}")
    warn_without_identity()


def _to_keep(files: Sequence[Path]) -> list[str]:
    """Return lines with the commands that keep the entry and its files with the repository.

    DVC does not add files that Git tracks, so staged or committed files stay in Git. Neither does it add files where
    Git would ignore DVC's own file, so those go to Git, too.
    """
    if git.output("rev-parse", "--git-dir") is None:
        return []
    for_git = [OWN]
    for_dvc = list[Path]()
    for path in files:
        if git.output("ls-files", "--error-unmatch", "--", str(path)) is not None:
            continue
        is_for_git = _is_ignored(path.with_name(f"{path.name}.dvc"))
        (for_git if is_for_git else for_dvc).append(path)
    force = "--force " if any(map(_is_ignored, for_git)) else ""
    command = f"git add {force}{_quote_paths(for_git)}"
    if for_dvc:
        return [
            f"To keep both with the repository, the file by its digest: {command} && dvc add {_quote_paths(for_dvc)}"
        ]
    if len(for_git) > 1:
        return [f"To keep both with the repository: {command}"]
    return [f"To keep the entry with the repository, where Git has its data: {command}"]


def _is_ignored(path: Path) -> bool:
    return git.output("check-ignore", "--", str(path)) is not None


def _quote_paths(files: Sequence[Path]) -> str:
    return " ".join(quote(str(path)) for path in files)


def _sizes(loaded: datasets.Loaded, rows: int) -> str:
    entry = loaded.task.entry
    sizes = {split: len(texts) for split, texts in loaded.splits.items()}
    shown = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    how = ", by a hash of the text" if entry.split else ""
    left_out = rows - sum(sizes.values())
    if left_out <= 0:
        return f"{shown}{how}"
    twice = "texts that come twice, or that two splits have" if has_mirrors(entry) else "a text that comes twice"
    return f"{shown}{how}; {left_out:,} rows left out: no text or label, or {twice}"


if __name__ == "__main__":
    main()
