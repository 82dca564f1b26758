"""The schemas of the tables pipeline/datasets.yaml and pipeline/models.yaml: one row a data set, one a model."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StrictFloat,
    Tag,
    model_validator,
)

from pipeline.errors import first_line


def all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check a list of names for pydantic.

    Raises:
        ValueError: if a name comes twice.
    """
    if len(set(names)) < len(names):
        raise ValueError("names must differ from each other")
    return names


def compiles(expression: str) -> str:
    """Check a regular expression for pydantic; a plain word is one.

    Raises:
        ValueError: if it does not compile.
    """
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {first_line(error)}") from None
    return expression


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", description="DVC splits keys on dots, so a word has none")]
Named = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f]+$", description="a row's word; or a folder or hub repository itself")
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pinned = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+$", description="name==version")]
Share = Annotated[StrictFloat, Field(ge=0, lt=1)]
# Squares of labels are summed in float32, which ends at 3e38.
Real = Annotated[StrictFloat, Field(ge=-1e15, le=1e15)]
Margin = Annotated[StrictFloat, Field(le=1e15)]
Split = Literal["train", "validation", "test"]

# The official scores of the tasks at hand. The first metric of a row is the one that selects the best checkpoint.
ClassificationMetric = Literal["accuracy", "f1", "macro_f1", "matthews_correlation"]
RegressionMetric = Literal["pearson", "spearman"]
COMPARED = ("first", "second")  # the classes of pairs: which of the two has the greater number


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
    """Files on disk, one a split; the ending (csv, tsv, jsonl, parquet) says how each is read."""

    kind: Literal["files"]
    files: dict[Split, str] = Field(min_length=1, description="paths from the root of the repository, or absolute")
    columns: Annotated[tuple[str, ...], AfterValidator(all_different)] | None = Field(
        None, min_length=1, description="names of the columns of csv and tsv files that have no header"
    )

    @model_validator(mode="after")
    def _columns_are_for_files_without_a_header(self) -> Self:
        if self.columns and (wrong := [path for path in self.files.values() if not path.endswith((".csv", ".tsv"))]):
            raise ValueError(f"columns are for csv and tsv files, got {', '.join(wrong)}")
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


class Classes(Row):
    """A label column that holds a class: its number, or its name."""

    column: str
    names: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(
        min_length=2, description="in the order of the class numbers"
    )


class Threshold(Row):
    """Two classes cut from a number: above the threshold or not. Numbers too close to it are left out."""

    column: str
    names: Annotated[tuple[str, str], AfterValidator(all_different)] = Field(description="not above, above")
    above: Real
    margin: Margin = Field(0.0, ge=0, description="rows with |number - above| < margin are left out")


class Number(Row):
    """A number to predict: regression.

    A label outside of `low` to `high` is refused, so they are the ends of the scale, not of what happens to occur;
    plots have them as the ends of their axes. Predictions are not cut to them.
    """

    column: str
    low: Real = Field(description="least possible label")
    high: Real = Field(description="greatest possible label")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


def _label_form(label: Any) -> str:
    """A label has no `kind`: its keys tell. One form alone is checked, so that a mistake is reported once."""
    if not isinstance(label, dict):
        return type(label).__name__ if isinstance(label, Row) else "Classes"
    return (
        "Number" if {"low", "high"} & label.keys() else "Threshold" if {"above", "margin"} & label.keys() else "Classes"
    )


Label = Annotated[
    Annotated[Classes, Tag("Classes")] | Annotated[Threshold, Tag("Threshold")] | Annotated[Number, Tag("Number")],
    Discriminator(_label_form),
]


class Pairs(Row):
    """Two classes made of numbers: which of two texts has the greater one. The texts are rows of the same split."""

    margin: Margin = Field(gt=0, description="pairs whose numbers differ by less are left out, as equal ones must be")


class DatasetRow(Row):
    """One data set: where it comes from, which columns are text and label, how it is split and how it is scored."""

    source: HubSource | FilesSource | PackageSource = Field(discriminator="kind")
    text: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(
        min_length=1, max_length=2, description="one text column, or a pair"
    )
    label: Label
    pairs: Pairs | None = Field(None, description="compare rows that have a number, instead of predicting it")
    metrics: tuple[ClassificationMetric | RegressionMetric, ...] = Field(min_length=1)
    cut: dict[Literal["validation", "test"], Share] = Field({}, description="splits to cut from train, as shares")
    select_on: Literal["validation", "test"] = Field(
        "validation",
        description="test: choose the checkpoint on the scored split, as the usual GLUE scripts do; "
        "then no validation is cut, and its rows stay in train",
    )

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts a number rather than a class."""
        return not self.names

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that the model predicts, in the order of their numbers; none where it predicts a number."""
        if isinstance(self.label, Number):
            return () if self.pairs is None else COMPARED
        return self.label.names

    @property
    def num_labels(self) -> int:
        """Outputs of the head: the number of classes, or 1."""
        return len(self.names) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the texts that the model reads: those of the source, or what a pair made of one text has."""
        return self.text if self.pairs is None else (self.text[0], f"{self.text[0]}_pair")

    @model_validator(mode="after")
    def _splits_cover_the_three(self) -> Self:
        have = self.source.provides
        if "train" not in have:
            raise ValueError("the source must provide train")
        if both := have & set(self.cut):
            raise ValueError(f"{', '.join(sorted(both))} is both in the source and cut from train; keep one")
        needed = {"test"} if self.select_on == "test" else {"validation", "test"}
        if missing := needed - have - set(self.cut):
            raise ValueError(
                f"nothing provides {', '.join(sorted(missing))}: name it in the source, or cut it from train"
            )
        if self.select_on == "test" and "validation" in have:
            raise ValueError("select_on: test leaves no use for the validation split; remove it from the source")
        if sum(self.cut.values()) >= 1:
            raise ValueError(f"the cut shares must leave rows for train, got a sum of {sum(self.cut.values()):g}")
        return self

    @model_validator(mode="after")
    def _pairs_compare_numbers_of_texts(self) -> Self:
        if self.pairs is None:
            return self
        if not isinstance(self.label, Number):
            raise ValueError("pairs compare numbers: the label needs low and high, and no names")
        if len(self.text) != 1:
            raise ValueError(f"pairs are made of one text column, got {', '.join(self.text)}")
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_label(self) -> Self:
        fitting = get_args(RegressionMetric if self.is_regression else ClassificationMetric)
        if wrong := [metric for metric in self.metrics if metric not in fitting]:
            raise ValueError(f"metrics {wrong} do not fit this label; allowed are {list(fitting)}")
        if "f1" in self.metrics and self.num_labels != 2:
            raise ValueError("f1 scores the second of two classes; use macro_f1 for more")
        return self


class HubModel(Row):
    """A model repository on the Hugging Face hub, or a local folder of the same form, read by `from_pretrained`."""

    kind: Literal["hub"]
    path: str
    revision: str | None = Field(None, description="a commit, so that the row stands for the content")


class PackageModel(Row):
    """A model folder that an installed package carries."""

    kind: Literal["package"]
    package: Pinned
    folder: str = Field(description="the folder with config.json, from the package's root")
    sha256: Sha256 = Field(description="of model.safetensors")
    same_as: str = Field(description="the hub repository of the same weights: what a saved adapter names as its base")
    revision: str | None = Field(None, description="the commit of that repository")


class ModelRow(Row):
    """One base model: where it comes from, which layers are adapted by default, and which module is its head."""

    source: HubModel | PackageModel = Field(discriminator="kind")
    target_modules: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="name endings of the layers to adapt; without them the architecture's usual ones",
    )
    head: tuple[str, ...] | None = Field(
        None, min_length=1, description="freshly drawn modules: always trained and saved; without them they are found"
    )
    _where: str = PrivateAttr("pipeline/models.yaml")

    @property
    def where(self) -> str:
        """Where it is written, as messages begin."""
        return self._where

    @classmethod
    def named(cls, name: str, where: str) -> Self | None:
        """Return the row of a folder, or of a repository (`owner/name`, or `owner/name@revision`), that has none.

        None if the name can only be that of a row.
        """
        folder = Path(name).is_dir()
        path, _, revision = (name, "", "") if folder else name.partition("@")
        if not (folder or "/" in path):
            return None
        source = HubModel(kind="hub", path=path, revision=revision or None)
        row = cls(source=source, target_modules=None, head=None)
        row._where = where
        return row
