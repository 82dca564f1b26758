"""The schemas of the sources of a data set: the hub, files, or a package from the package index."""

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
