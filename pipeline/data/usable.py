"""The usable rows of a split, with all texts and a label, in a memory-mapped file.

Memory holds only three values per example: a hash of its texts, a hash of the unit it is cut with, and its label.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import labels, records, sources
from pipeline.data.texts import is_missing
from pipeline.params.rows import GROUP, INDEX, Examples, Number


class Usable(NamedTuple):
    """The examples of a split; their texts are in the file, in the same order."""

    path: Path
    digests: np.ndarray  # (examples, 2) of uint64: the first half of the SHA-256 of the folded texts
    keys: np.ndarray  # (examples,) of uint64: hashes, equal for examples that no cut may separate
    labels: np.ndarray  # (examples,); empty for a hidden split


class _Example(NamedTuple):
    stored: tuple[Any, ...]  # the values of a row in the file
    same: str  # equal for examples that are duplicates
    together: str  # equal for examples that no cut may separate


def write(
    table: sources.Table, row: Examples, split: str, where: str, dropped: Counter[str], path: Path, *, hidden: bool
) -> Usable:
    """Write the examples that have all texts and a label that is not dropped; for a hidden split, write all.

    Columns are text, text_pair (for a pair) and label; also `group`, a number, if examples are scored in groups, and
    `index`, whole numbers, in a hidden split whose submission names them.

    Raises:
        UserError: for a text or label that is neither missing nor allowed; the message gives the file and the row
            number.
    """
    schema = _schema(row, hidden=hidden)
    read = _reader(row, dropped, hidden=hidden)
    digests, keys = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)]
    found = [np.empty(0, np.float64 if isinstance(row.label, Number) else np.int64)]
    number = behind = 0
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
        console.progress(f"read {split}", table.total, table.unit) as advance,
    ):
        for done, columns in table.batches:
            examples: list[_Example] = []
            for values in zip(*columns.values(), strict=True):
                number += 1
                try:
                    examples += read(number, dict(zip(columns, values, strict=True)))
                except ValueError as error:
                    raise UserError(f"{where}: {split}: {table.name}: row {number}: {error}") from None
            stored = list(zip(*(one.stored for one in examples), strict=True)) or [()] * len(schema)
            batch = pa.RecordBatch.from_pydict(dict(zip(schema.names, stored, strict=True)), schema)
            writer.write_batch(batch)
            digests.append(_digests(one.same for one in examples))
            keys.append(_digests(one.together for one in examples)[:, 0] if row.is_grouped else digests[-1][:, 0])
            if not hidden:
                found.append(batch["label"].to_numpy())
            if done > behind:
                advance(done - behind)
                behind = done
    return Usable(path, np.concatenate(digests), np.concatenate(keys), np.concatenate(found))


def _schema(row: Examples, *, hidden: bool) -> pa.Schema:
    columns = dict.fromkeys(("text", "text_pair")[: len(row.text)], pa.string())
    if not hidden:
        columns["label"] = pa.float64() if isinstance(row.label, Number) else pa.int64()
    if row.is_grouped:
        columns[GROUP] = pa.int64()
    if hidden and row.submission is not None and row.submission.index:
        columns[INDEX] = pa.list_(pa.int64())
    return pa.schema(columns)


def _reader(
    row: Examples, dropped: Counter[str], *, hidden: bool
) -> Callable[[int, records.Record], Iterator[_Example]]:
    """Return a function from a row's number and the row to its examples, which counts dropped rows."""
    read_texts, read_label = records.reader(row), labels.reader(row.label)
    group_of = _grouping(row)
    index = row.submission.index if hidden and row.submission is not None else ()

    def read(number: int, record: records.Record) -> Iterator[_Example]:
        label = None
        if not hidden:
            value = record[row.label.column]
            if is_missing(value) or any(is_missing(record[column]) for column in row.reads):
                dropped["missing"] += 1
                return
            label = read_label(value)
        texts = read_texts(record)
        if not hidden and label is None:
            dropped["within_margin"] += 1
            return
        group, together = group_of(number, record)
        folded = ["\n".join(map(fold, of_one)) for of_one in texts]
        for place, of_one in enumerate(texts):
            stored: tuple[Any, ...] = of_one
            if not hidden:
                stored += (int(label == place) if row.choices else label,)
            if row.is_grouped:
                stored += (group,)
            if index:
                stored += ([records.whole(record, column) for column in index],)
            # Choices are kept or dropped together: each is identified by the texts of all.
            same = "\n".join([*folded, str(place)]) if row.choices else folded[0]
            yield _Example(stored, same, together if isinstance(row.group, tuple) else "\n".join(folded))

    return read


def _grouping(row: Examples) -> Callable[[int, records.Record], tuple[int, str]]:
    """Return a function from a row's number and the row to its group number and the key that determines the split."""
    if not isinstance(row.group, tuple):
        size = row.group or 1
        return lambda number, record: ((number - 1) // size, "")
    columns, numbers = row.group, dict[bytes, int]()

    def of(_: int, record: records.Record) -> tuple[int, str]:
        values = [str(record[column]) for column in columns]
        identity = hashlib.sha256("\0".join(values).encode("utf-8", "surrogatepass")).digest()
        return numbers.setdefault(identity, len(numbers)), fold(values[0])

    return of


def _digests(contents: Iterator[str]) -> np.ndarray:
    """Return half of the SHA-256 of each text, as two numbers."""
    content = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in contents)
    return np.frombuffer(content, ">u8").reshape(-1, 2).astype(np.uint64)


def fold(text: str) -> str:
    """Return the text after NFKC normalization, case folding and whitespace folding, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
