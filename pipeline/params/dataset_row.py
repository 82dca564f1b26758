"""The schema of the tables of data: one row per data set."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    Tag,
    model_validator,
)

from pipeline.params.sources import Columns, PackageSource, Row, TableRow, TableSource, all_different

FIELD = re.compile(r"\{([^{}]+)\}")  # of a template: a column in braces
CHOICE = "choice"  # the template field that stands for the current choice
GROUP = "group"  # a column of examples in addition to text, text_pair and label


def fields(entry: str) -> tuple[str, ...]:
    """Return the columns that an entry of `text` names: those in braces or, if there are none, the entry itself."""
    return tuple(FIELD.findall(entry)) or (entry,)


def is_template(entry: str) -> bool:
    """Return whether an entry of `text` is more than a column name."""
    return fields(entry) != (entry,)


Share = Annotated[StrictFloat, Field(ge=0, lt=1)]
# The official scores of the supported tasks. The first metric of a row selects the best checkpoint.
ClassificationMetric = Literal["accuracy", "f1", "macro_f1", "matthews_correlation", "exact_match"]
RegressionMetric = Literal["pearson", "spearman"]
COMPARED = ("first", "second")  # the classes of pairs: which of the two has the larger number
CHOSEN = ("wrong", "right")  # the classes of a choice


class Classes(Row):
    """A label column that holds a class, by number or name."""

    column: str
    names: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(min_length=2, description="in class order")


class Threshold(Row):
    """Two classes derived from a number: above the threshold or not. Numbers too close to it are dropped."""

    column: str
    names: Annotated[tuple[str, str], AfterValidator(all_different)] = Field(description="not above, above")
    above: StrictFloat
    margin: StrictFloat = Field(0.0, ge=0, description="rows with |number - above| < margin are dropped")


class Number(Row):
    """A number to predict: regression.

    `low` and `high` are the ends of the scale, not of the observed range: labels outside are an error. Plots use them
    as axis limits. Predictions are not clipped to them.
    """

    column: str
    low: StrictFloat = Field(description="least possible label")
    high: StrictFloat = Field(description="greatest possible label")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


def _label_form(label: Any) -> str:
    """A label has no `kind`: its keys decide. Only one form is checked, so that a mistake is reported once."""
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
    """Two classes derived from numbers: which of two texts of a split has the larger one."""

    margin: StrictFloat = Field(
        gt=0, description="pairs whose numbers differ by less are dropped; above 0, to exclude ties"
    )


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


class DatasetRow(TableRow):
    """One data set: its source, which columns are text and label, how it is split and how predictions are scored."""

    source: TableSource | PackageSource = Field(discriminator="kind")
    text: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(
        min_length=1, max_length=2, description="one text, or a pair: a column, or a template with columns in {}"
    )
    mark: tuple[Mark, ...] = Field((), description="parts of columns to mark, before templates are filled")
    choices: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(
        (), description="columns, each of which is {choice} in a separate example; the label says which is right"
    )
    group: Columns | None = Field(
        None, description="examples equal in these columns are scored together; the first determines the split"
    )
    label: Label
    metrics: tuple[ClassificationMetric | RegressionMetric, ...] = Field(min_length=1)
    pairs: Pairs | None = Field(None, description="compare the numbers of two rows instead of predicting them")
    cut: dict[Literal["validation", "test"], Share] = Field({}, description="splits to cut from train, as shares")
    stratify: StrictBool = Field(
        default=False,
        description="cut the share from each class, so that every split has rare classes; the cut then depends on the "
        "other rows of the class",
    )
    select_on: Literal["validation", "test"] = Field(
        "validation",
        description="test: choose the checkpoint on the scored split, as the usual GLUE scripts do; "
        "then no validation is cut, and its rows stay in train",
    )
    _where: str = PrivateAttr("pipeline/datasets.yaml")

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts a number instead of a class."""
        return not self.names

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that the model predicts, in the order of their numbers; none where it predicts a number."""
        if self.pairs is not None:
            return COMPARED
        if self.choices:
            return CHOSEN
        return () if isinstance(self.label, Number) else self.label.names

    @property
    def num_labels(self) -> int:
        """Outputs of the head: the number of classes, or 1."""
        return len(self.names) or 1

    @property
    def is_grouped(self) -> bool:
        """Whether examples are scored in groups."""
        return bool(self.choices) or self.group is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns from which texts and groups are made."""
        found = [name for entry in self.text for name in fields(entry) if not (self.choices and name == CHOICE)]
        found += [*self.choices, *(name for mark in self.mark for name in mark.columns)]
        return tuple(dict.fromkeys([*found, *(self.group or ())]))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the texts that the model reads: columns of the source, or stand-ins for derived texts."""
        if self.pairs is not None:
            return self.text[0], f"{self.text[0]}_pair"
        made = ("text", "text_pair")
        return tuple(made[place] if is_template(entry) else entry for place, entry in enumerate(self.text))

    @model_validator(mode="after")
    def _choices_are_classes_that_a_text_names(self) -> Self:
        if not self.choices:
            return self
        if not isinstance(self.label, Classes) or len(self.label.names) != len(self.choices):
            raise ValueError(f"choices need a label with {len(self.choices)} names, one for each in their order")
        if not any(is_template(entry) and CHOICE in fields(entry) for entry in self.text):
            raise ValueError(f"choices need a text with {{{CHOICE}}}, got {', '.join(self.text)}")
        if self.group is not None:
            raise ValueError("choices already form groups: leave out group")
        if self.metrics != ("accuracy",):
            raise ValueError(f"choices are scored by accuracy alone, got {', '.join(self.metrics)}")
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_label(self) -> Self:
        fitting = get_args(RegressionMetric if self.is_regression else ClassificationMetric)
        if wrong := [metric for metric in self.metrics if metric not in fitting]:
            raise ValueError(f"metrics {wrong} do not fit this label; allowed are {list(fitting)}")
        if "f1" in self.metrics and self.num_labels != 2:
            raise ValueError("f1 scores the second of two classes; use macro_f1 for more")
        if self.group is None and "exact_match" in self.metrics:
            raise ValueError("exact_match scores groups: define them with `group`")
        return self

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
    def _strata_are_classes_of_single_examples(self) -> Self:
        if self.stratify and (self.is_regression or self.is_grouped or self.pairs is not None):
            raise ValueError("stratify: needs a label of classes, and no choices, group or pairs")
        return self
