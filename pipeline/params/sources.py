"""The schemas of where the rows of a data set come from: the hub, files, or a package of the index."""

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
Split = Literal["train", "validation", "test", "hidden"]  # hidden: without labels, to be predicted for a benchmark
Columns = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(all_different)]


class Row(BaseModel):
    """What all rows share: no unknown key, no change after loading."""

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
    """Files on disk, one a split; the ending (csv, tsv, txt, jsonl, parquet) says how each is read."""

    kind: Literal["files"]
    files: dict[Split, str] = Field(min_length=1, description="paths from the root of the repository, or absolute")
    columns: Columns | dict[Split, Columns] | None = Field(
        None, description="names of the columns of csv and tsv files that have no header: of all, or of some splits"
    )
    each: str | None = Field(None, description="of jsonl: where lists are, each item of which makes a row: a.list.list")
    broken_lines: Literal["refuse", "drop"] = Field(
        "refuse", description="lines of csv and tsv with another number of columns; drop counts them as missing"
    )

    def columns_of(self, split: Split) -> Columns | None:
        """The names of the columns of a file without a header; None where it has one."""
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
    members: tuple[str, ...] = Field(min_length=1, description="path in the archive, then in the archive found there")
    columns: tuple[str, ...] = Field(min_length=1, description="names of the tab-separated columns; there is no header")

    @property
    def provides(self) -> set[Split]:
        """The splits that need no cutting: one file has no splits of its own, all of it is train."""
        return {"train"}
