"""The schema of the registries of data sets: one entry per data set."""

from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, StrictBool, StrictFloat, model_validator

from pipeline.params.labels import (
    OF_CLASSES,
    OF_COMPLETIONS,
    OF_MULTI_LABEL,
    OF_NUMBERS,
    RARER,
    Classes,
    Label,
    Number,
    Pairs,
)
from pipeline.params.sources import Added, Columns, MarkedSpan, Names, PackageSource, RegistryEntry, TableSource

SELECT_PROMPTS = 64
Share = Annotated[StrictFloat, Field(gt=0, lt=1)]


class DatasetEntry(RegistryEntry):
    """One data set: its source, which columns are text and label, how it is split and how predictions are scored."""

    source: TableSource | PackageSource = Field(discriminator="kind")
    text: Names = Field((), max_length=2, description="one text, or a pair: a column, or a template with columns in {}")
    span: tuple[MarkedSpan, ...] = Field((), description="parts of columns to mark, before templates are filled")
    choices: Names = Field(
        (),
        description="columns, each of which fills {choice} in one example; the label is the index of the right one",
    )
    group: Columns | None = Field(
        None, description="examples equal in these columns are scored together; the first determines the split"
    )
    tenant: str | None = Added(
        description="column with the tenant of each example: each tenant has its own labels, splits and scores"
    )
    held_out_tenants: Share | Columns | None = Added(
        description="names of tenants, or a fraction of them, chosen by a hash of their names, of which no text is in "
        "train, validation or test; evaluate scores the model on them with no labels and with 5, 10, 20 and 60"
    )
    label: Label = Field(
        description="column and names; with threshold and perhaps margin; or multi_label, separator and names, for any "
        "number of labels per text; or column, low and high; or the column of a completion, which a language model "
        "generates; or the column of messages, of which it generates the assistant's"
    )
    template: Literal["none"] | None = Added(
        description="none: use the plain text of a prompt; by default the tokenizer's chat template, if any, is applied"
    )
    metrics: tuple[str, ...] = Field(
        min_length=1,
        description=f"for classes {', '.join(OF_CLASSES)}; for multi-label "
        f"{' and '.join(OF_MULTI_LABEL)}; for a number {' and '.join(OF_NUMBERS)}; "
        f"for completions {' and '.join(OF_COMPLETIONS)}; the first selects the checkpoint, for completions the loss",
    )
    select: Annotated[str, Field(pattern=r"^exact_match(:[1-9]\d{0,5})?$")] | None = Added(
        description="exact_match: for completions, select the checkpoint by the text generated after each epoch for "
        f"{SELECT_PROMPTS} validation prompts; exact_match:16: for 16",
    )
    pairs: Pairs | None = Field(None, description="compare the numbers of two examples instead of predicting them")
    split: dict[Literal["validation", "test"], Share] = Field({}, description="splits to take from train, as fractions")
    stratify: StrictBool = Field(
        default=False,
        description="take the fraction from each class, so that every split has rare classes; the split of an example "
        "then depends on the other examples of its class",
    )
    select_on: Literal["validation", "test"] = Field(
        "validation",
        description="test: select the checkpoint on the scored split, as the usual GLUE scripts do; "
        "no validation split is then taken from train",
    )
    _where: str = PrivateAttr("pipeline/datasets.yaml")

    def of_ones_own(self) -> Self:
        """Return the entry as a user's own: by default the positive class of f1 is the rarer one."""
        label = self.label
        if isinstance(label, Classes) and (label.positive, self.tenant) == (None, None) and "f1" in self.metrics:
            return self.model_copy(update={"label": label.model_copy(update={"positive": RARER})})
        return self

    @property
    def is_grouped(self) -> bool:
        """Whether examples are scored in groups, which a split never separates."""
        return bool(self.group or self.choices)

    @property
    def may_stratify(self) -> bool:
        """Whether `stratify` could be set: something is cut, and the key is compatible with the others."""
        others = (self.tenant, self.is_grouped, self.stratify)
        return bool(self.split) and "stratify" in self.label.compatible_keys and not any(others)

    @property
    def predicts_number(self) -> bool:
        """Whether the answer is a number: labels are numbers, which are not compared in pairs."""
        return isinstance(self.label, Number) and self.pairs is None

    @property
    def select_prompts(self) -> int:
        """Maximum number of prompts for which texts are generated to select the checkpoint; 0 if the loss does."""
        return int((self.select or "exact_match:0").partition(":")[2] or SELECT_PROMPTS)

    @model_validator(mode="after")
    def _goes_with_its_label_and_has_the_three_splits(self) -> Self:
        self.label.check(self)
        if self.held_out_tenants is not None and self.tenant is None:
            raise ValueError("held_out_tenants: needs tenant, the column of tenants")
        have = self.source.names.keys()
        if "train" not in have:
            raise ValueError("the source must provide train")
        both = ", ".join(sorted(have & self.split.keys()))
        if both:
            raise ValueError(f"{both} is both in the source and cut from train; keep one")
        needed = {self.select_on, "test"}
        missing = ", ".join(sorted(needed - have - self.split.keys()))
        if missing:
            raise ValueError(f"nothing provides {missing}: name it in the source, or cut it from train")
        if self.select_on == "test" and "validation" in have:
            raise ValueError("select_on: test leaves no use for the validation split; remove it from the source")
        if sum(self.split.values()) >= 1:
            raise ValueError(f"the cut shares must leave rows for train, got a sum of {sum(self.split.values()):g}")
        return self
