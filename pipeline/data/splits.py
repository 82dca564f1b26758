"""The usable examples of a split: those with all texts and a label."""

import hashlib
import unicodedata
from collections import Counter
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data import labels, sources, texts
from pipeline.params.dataset_row import GROUP, DatasetRow, Number
from pipeline.params.sources import Split

HASHES = ("hash_1", "hash_2")  # columns, beside those of the table


class Examples(NamedTuple):
    """The examples of a split in the order of the source, and what identifies, cuts and labels each."""

    table: pa.Table  # text, text_pair (for a pair), label, and group, a number, if examples are scored in groups
    digests: np.ndarray  # (examples, 2) of uint64: the first half of the SHA-256 of the folded texts
    keys: np.ndarray  # (examples,) of uint64: hashes, equal for examples that no cut may separate
    labels: np.ndarray  # (examples,)
    dropped: Counter[str]  # rows by reason


def read(row: DatasetRow, split: Split, where: str) -> Examples:
    """Return the examples of a split; errors begin with `where`.

    Raises:
        UserError: if the source cannot be read, or for a text or label that is neither missing nor allowed; names the
            file and the line or row.
    """
    where = f"{where}: {split}: {sources.name_of(row.source, split)}"
    columns = list(dict.fromkeys((*row.reads, row.label.column)))
    dropped = Counter[str]()
    with sources.explained(where):
        examples = _examples(sources.read(row.source, split, columns, where), row, dropped)
    if row.group:
        examples[GROUP] = pd.factorize(examples[GROUP])[0]
    schema = pa.schema({name: pa.string() for name in ("text", "text_pair")[: len(row.text)]})
    schema = schema.append(pa.field("label", pa.float64() if isinstance(row.label, Number) else pa.int64()))
    if row.is_grouped:
        schema = schema.append(pa.field(GROUP, pa.int64()))
    whole = pa.Table.from_pandas(examples[schema.names], schema, preserve_index=False).replace_schema_metadata(None)
    digests = examples[list(HASHES)].to_numpy()
    return Examples(whole, digests, examples["key"].to_numpy(), examples["label"].to_numpy(), dropped)


def _examples(table: pd.DataFrame, row: DatasetRow, dropped: Counter[str]) -> pd.DataFrame:
    """Return the examples of a table, and add to the counts of dropped rows."""
    numbers = np.arange(len(table))
    missing = table.map(texts.is_missing).to_numpy(bool).any(axis=1)
    table, numbers = table[~missing], numbers[~missing]
    found = labels.read(table[row.label.column], row.label).to_numpy(float)
    apart = ~np.isnan(found)
    dropped["missing"] += int(missing.sum())
    dropped["within_margin"] += int((~apart).sum())
    table, numbers, found = table[apart], numbers[apart], found[apart]
    made = texts.of(table, row)
    # Choices are kept or dropped together: each is identified by the texts of all.
    folded = [text[name].map(fold).astype("str") for text in made for name in text]  # no rows have no type
    same = reduce(lambda one, other: one + "\n" + other, folded)
    together = same if not row.group else table[row.group[0]].map(str).map(fold)
    if row.group:
        named = (table[name].map(labels.plain_text) for name in row.group)
        numbers = _digests(reduce(lambda one, other: one + "\0" + other, named))[:, 0]
    kind = float if isinstance(row.label, Number) else int
    examples = []
    for place, text in enumerate(made):
        digests = _digests(same + f"\n{place}" if row.choices else same)
        examples.append(
            text.assign(
                label=(found == place if row.choices else found).astype(kind),
                **dict(zip(HASHES, digests.T, strict=True)),
                key=_digests(together)[:, 0],
                **{GROUP: numbers},
            ).astype(dict.fromkeys(text, "str"))
        )
    order = np.arange(len(made) * len(table)).reshape(len(made), -1).T.ravel()  # the choices of a row are neighbors
    return pd.concat(examples, ignore_index=True).iloc[order].reset_index(drop=True)


def _digests(contents: pd.Series) -> np.ndarray:
    """Return half of the SHA-256 of each text, as two numbers."""
    content = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in contents)
    return np.frombuffer(content, ">u8").reshape(-1, 2).astype(np.uint64)


def fold(text: str) -> str:
    """Return the text after NFKC normalization, case folding and whitespace folding, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
