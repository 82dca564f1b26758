"""The values of a row's cells: what is missing, what is no text, which text a value stands for, and its hash."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from math import isnan
from typing import Any

Cells = Mapping[str, Any]  # of a row, by column
Record = tuple[str, Cells]  # where a row is, such as line 7, and its cells
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
HALVES = re.compile("[\ud800-\udfff]")  # of characters, which jsonl can hold and a tokenizer cannot


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, or only whitespace."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and isnan(value))


def text_in(value: object) -> str:
    """Return a value that is a string of whole characters.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, str) or HALVES.search(value):
        raise ValueError(f"a text must be text, got {value!r}")
    return value


def plain_text(value: object) -> str:
    """Return the same text for True, 1, 1.0 and the text 1.0, which depend on the file format, without space around.

    01 remains as it is.
    """
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))
    text = str(value).strip()
    return str(int(text.partition(".")[0])) if WHOLE.fullmatch(text) else text


def hash_of(text: str) -> int:
    """Return the first eight bytes of the SHA-256 of a text, as a number of the same order."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def fold(text: str) -> str:
    """Return the text after NFKC normalization, case folding and whitespace folding, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def rounded(value: float, digits: int) -> float:
    """Return a number rounded to significant digits."""
    return float(f"{value:.{digits}g}")
