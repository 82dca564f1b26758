"""The values of a table's cells: what is missing, what is no text, which text a value stands for, and its hash."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.tasks.outcome import Numbers

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
HALVES = re.compile("[\ud800-\udfff]")  # of characters, which jsonl can hold and a tokenizer cannot


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, or only whitespace."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value)) or (isinstance(value, str) and not value.strip())


def lacking(table: pd.DataFrame) -> Numbers:  # (rows,)
    """Return which rows of a table have an empty cell."""
    return table.map(is_missing).to_numpy(bool).any(axis=1)


def refuse(values: pd.Series, wrong: "pd.Series[bool]", message: str | Callable[[Any], str]) -> None:
    """Refuse the first wrong value; the index of `values` holds the numbers of lines or rows and is named so.

    Raises:
        ValueError: with the line or row, and the message, or what it says of the value.
    """
    if wrong.any():
        first = int(wrong.to_numpy().argmax())
        reason = message if isinstance(message, str) else message(values.astype(object).iloc[first])
        raise ValueError(f"{values.index.name} {values.index[first]}: {reason}")


def refuse_other_than_text(values: pd.Series) -> None:
    """Refuse the first value that is no string of whole characters."""
    wrong = ~values.map(lambda value: isinstance(value, str) and not HALVES.search(value)).astype(bool)
    refuse(values, wrong, lambda value: f"a text must be text, got {value!r}")


def plain_text(value: object) -> str:
    """Return the same text for True, 1, 1.0 and the text 1.0, which depend on the file format, without space around.

    01 remains as it is.
    """
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))
    text = str(value).strip()
    return str(int(text.partition(".")[0])) if WHOLE.fullmatch(text) else text


def hashes(texts: pd.Series) -> Numbers:  # (texts,), uint64
    """Return the first eight bytes of the SHA-256 of each text, as a number of the same order."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def fold(text: str) -> str:
    """Return the text after NFKC normalization, case folding and whitespace folding, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def rounded(value: float, digits: int) -> float:
    """Return a number rounded to significant digits."""
    return float(f"{value:.{digits}g}")
