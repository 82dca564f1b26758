"""What examples are, and what identifies them: the hashes by which splits are cut and duplicates found."""

import hashlib
import unicodedata
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

GROUP = "group"  # a column of examples in addition to text, text_pair and label


class Examples(NamedTuple):
    """The examples of a split in the order of the source, and what identifies, cuts and labels each."""

    table: pa.Table  # text, text_pair (for a pair), label, and group, a number, if examples are scored in groups
    digests: np.ndarray  # (examples, 2) of uint64: the first half of the SHA-256 of the folded texts
    keys: np.ndarray  # (examples,) of uint64: hashes, equal for examples that no cut may separate
    labels: np.ndarray  # (examples,)
    dropped: Counter[str]  # rows by reason


class Split(NamedTuple):
    """A split after the cut: the rows of a table that it has, their labels, and what was dropped to make them."""

    table: pa.Table
    rows: np.ndarray
    labels: np.ndarray  # (rows,)
    dropped: Counter[str]


def hashes(contents: pd.Series) -> np.ndarray:  # (contents, 2) of uint64
    """Return half of the SHA-256 of each text, as two numbers."""
    content = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in contents)
    return np.frombuffer(content, ">u8").reshape(-1, 2).astype(np.uint64)


def fold(text: str) -> str:
    """Return the text after NFKC normalization, case folding and whitespace folding, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
