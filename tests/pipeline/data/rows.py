"""Rows of small files."""

import io
import tarfile

from pipeline.data import datasets
from pipeline.params.dataset_row import DatasetRow
from tests.kit import refused, write

SPLITS = ("train", "validation", "test")
CLASSES = {"column": "label", "names": ["bad", "good"]}
NUMBER = {"column": "label", "low": 0, "high": 5}


def row_of(files, label=CLASSES, text=("text",), source=None, **settings):
    settings.setdefault("metrics", ["pearson"] if "low" in label else ["accuracy"])
    return DatasetRow(source={"kind": "files", "files": files, **(source or {})}, label=label, text=text, **settings)


def write_jsonl(path, rows, columns=("text", "label")):
    return str(write(path, [dict(zip(columns, row, strict=True)) for row in rows]))


def row_with(folder, name, content, **settings):
    """The row of a file with this content for train; the other splits have an example each."""
    held_out = {split: write_jsonl(folder / f"{split}.jsonl", [("held out", 1)]) for split in SPLITS[1:]}
    return row_of({"train": str(write(folder / name, content)), **held_out}, **settings)


def tar_gz(files):
    """The bytes of an archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def frames(loaded):
    return {split: table.to_pandas() for split, table in loaded.splits.items()}


def load(row):
    return frames(datasets.load(row, "mine"))


def refusal(row):
    return refused(datasets.load, row, "mine", says="pipeline/datasets.yaml: mine: ")
