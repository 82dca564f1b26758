"""Additional sets that an adapter predicts: the row's hidden split, and the sets under `also`.

They have their own tables, named as in `DatasetRow.scored` and `hidden`. Nothing is cut or dropped as a duplicate,
because published scores count every row.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.data.datasets import mapped
from pipeline.data.usable import write
from pipeline.params.rows import DatasetRow
from pipeline.params.sources import HIDDEN

if TYPE_CHECKING:
    from datasets import Dataset


def load(row: DatasetRow, name: str, dropped: Counter[str]) -> dict[str, "Dataset"]:
    """Return the tables by split, as `pipeline.data.datasets.load`, and add to `dropped`. `name` is the row's name.

    Raises:
        UserError: if a source cannot be read, a text or label does not fit the row, or a split is empty.
    """
    where = f"{params.TABLES['data'][0]}: {name}"
    paths = {}
    with tempfile.TemporaryDirectory(prefix="lsr-adapt-") as folder:
        for split, examples in (row.scored | row.hidden).items():
            is_hidden = split in row.hidden
            ((_, table),) = sources.read(examples, where, (HIDDEN if is_hidden else "test",)).items()
            written = write(table, examples, split, where, dropped, Path(folder, split), hidden=is_hidden)
            if not len(written.digests):
                raise UserError(f"{where}: {split} is empty: {table.name}")
            paths[split] = written.path
        return mapped(paths)
