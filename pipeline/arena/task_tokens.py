"""The tokens of a task, as many as a preset reads, computed once.

They are cached in files for all processes and all later runs, and mapped into memory.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock

from pipeline import tasks
from pipeline.arena.files import digests
from pipeline.arena.preset import VERSION, Reads
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import base_models, datasets, tokens
from pipeline.data.encoding import tokenize, write
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.model_row import ModelRow
from pipeline.tasks.task import GROUP

CACHE = Path(".cache/arena")
KEPT = (*tokens.INPUTS, GROUP)


class Task(NamedTuple):
    """What determines the tokens of a task: a row and its name, the model's row, and how much is read."""

    name: str
    row: DatasetRow
    model: ModelRow
    max_length: int
    reads: Reads

    def digest(self) -> str:
        """Return a hash of all fields and the contents of files, 16 hexadecimal digits."""
        files = digests((self.row.source, self.model.source))
        known = (VERSION, self.row.model_dump_json(), self.model.model_dump_json(), self.max_length, self.reads, files)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def splits(task: Task) -> dict[str, Dataset]:
    """Return the tokens of train, validation and test.

    Raises:
        UserError: as `pipeline.data.datasets.load`, or if no example of a split is left.
    """
    folder = cached(task)
    mapped = {split: _mapped(folder, split) for split in datasets.SPLITS}
    return {
        name: split.select_columns([column for column in split.column_names if column in KEPT])
        for name, split in mapped.items()
    }


def write_labels(task: Task, path: Path) -> None:
    """Write the labels of the test split next to the records, in the order of the predictions."""
    test = _mapped(cached(task), "test")
    labels = tasks.of(task.row).known(np.asarray(test["label"][:]), tokens.groups_of(test))
    artifacts.write_csv(path, ["label"], [[label] for label in labels.tolist()])


def cached(task: Task) -> Path:
    """Return the folder of a task's tokens, which are computed if they are not in the cache.

    Raises:
        UserError: as `splits`.
    """
    folder = CACHE / f"tokens-{task.digest()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with artifacts.replacing(folder) as temporary:
                temporary.mkdir()
                for split, table in _tables(task).items():
                    write(table, temporary / f"{split}.arrow")
    return folder


def _tables(task: Task) -> dict[str, pa.Table]:
    if tasks.of(task.row).is_grouped and any(amount != "all" for amount in task.reads.model_dump().values()):
        raise UserError(f"{task.name}: examples are scored in groups, which must stay whole: set all of reads to all")
    tokenizer = base_models.load_tokenizer(task.model)
    texts = datasets.load(task.row, task.name).splits
    tables: dict[str, pa.Table] = {}
    reads = task.reads
    for split in datasets.SPLITS:
        table, lengths = tokenize(texts[split], tokenizer, task.max_length)
        tables[split] = table if reads.longest == "all" else table.filter(pa.array(lengths <= reads.longest))
    if reads.train != "all" and task.row.select_on == "validation":
        spare = tables["train"].slice(reads.train)
        tables["validation"] = pa.concat_tables([tables["validation"], spare.select(tables["validation"].column_names)])
    amounts = {split: getattr(reads, split) for split in tables}
    first = {split: t if amounts[split] == "all" else t.slice(0, amounts[split]) for split, t in tables.items()}
    if empty := [split for split, table in first.items() if not len(table)]:
        raise UserError(f"{task.name}: {empty[0]} has no text of at most {reads.longest} tokens; raise reads.longest")
    return first


def _mapped(folder: Path, split: str) -> Dataset:
    return Dataset.from_file(str(folder / f"{split}.arrow"))
