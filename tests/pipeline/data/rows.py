"""Rows of small files."""

import io
import tarfile

import pandas as pd

from pipeline.params.dataset_entry import DatasetEntry

SPLITS = ("train", "validation", "test")
CLASSES = {"column": "label", "names": ["bad", "good"]}
NUMBER = {"column": "label", "low": 0, "high": 5}


def row_of(files, label=CLASSES, text=("text",), **settings):
    settings.setdefault("metrics", ["pearson"] if "low" in label else ["accuracy"])
    return DatasetEntry(source={"kind": "files", "files": files}, label=label, text=text, **settings)


def frames(loaded):
    """The splits of loaded data as tables, by name."""
    tables = {split: [batch.to_pandas() for batch in its.batches(1000)] for split, its in loaded.splits.items()}
    return {split: pd.concat(parts, ignore_index=True) for split, parts in tables.items()}


def package_index(folder, monkeypatch):
    """Return an empty folder that stands for the package index, beside an empty cache."""
    index = folder / "index"
    index.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": index, "XDG_CACHE_HOME": folder / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    return index


def tar_gz(files):
    """The bytes of an archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
