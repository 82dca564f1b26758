"""What an adapter predicts beside its test split: the row's hidden split, and the sets under `also`.

They have tables of their own. A set's rows with labels are `NAME`, those without `NAME.hidden`; nothing is cut or left
out as a duplicate, for published scores count every row.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline import params
from pipeline.data import sources
from pipeline.data.datasets import mapped
from pipeline.data.usable import write
from pipeline.errors import UserError
from pipeline.params.rows import DatasetRow, Examples, Split

if TYPE_CHECKING:
    from datasets import Dataset

HIDDEN: Final = "hidden"


def hidden(name: str | None) -> str:
    """Return the name of the hidden split of a set under `also`, or of the row itself."""
    return HIDDEN if name is None else f"{name}.{HIDDEN}"


def load(row: DatasetRow, name: str, dropped: Counter[str]) -> dict[str, "Dataset"]:
    """Return the tables by split, as `pipeline.data.datasets.load`; `dropped` counts on. `name` is the row's.

    Raises:
        UserError: if a source cannot be read, if a text or label is not what the row says, or if a split is empty.
    """
    where = f"{params.TABLES['data'][0]}: {name}"
    with tempfile.TemporaryDirectory(prefix="lsr-adapt-") as folder:
        paths = _write(row, {HIDDEN: HIDDEN}, where, dropped, Path(folder))
        for word, further in row.also.items():
            names: dict[Split, str] = {"test": word, HIDDEN: hidden(word)}
            paths |= _write(further, names, f"{where}.also.{word}", dropped, Path(folder))
        return mapped(paths)


def _write(row: Examples, names: dict[Split, str], where: str, dropped: Counter[str], folder: Path) -> dict[str, Path]:
    found = {}
    for split, table in sources.read(row, where, tuple(names)).items():
        name = names[split]
        written = write(table, row, split, where, dropped, folder / name, hidden=split == HIDDEN)
        if not len(written.digests):
            raise UserError(f"{where}: {split} is empty: {table.name}")
        found[name] = written.path
    return found
