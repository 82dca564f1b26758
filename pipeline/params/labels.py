"""The forms of `label` in a data set entry: the content of its column, and compatible keys and metrics.

The form determines the task type, see `pipeline.tasks`. A new task type registers its form in FORMS.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, StrictFloat, model_validator

from lsr_onnx.task import LONGEST_NAME, check_label_names
from pipeline.core.errors import nearest
from pipeline.params import renamed
from pipeline.params.sources import CHOICE, Added, Names, StrictModel, all_different, fields, is_template

if TYPE_CHECKING:
    from pipeline.params.dataset_entry import DatasetEntry

# The official scores of the supported tasks. The first metric of an entry selects the best checkpoint.
OF_CLASSES = ("accuracy", "f1", "macro_f1", "matthews_correlation", "exact_match")
OF_MULTI_LABEL = ("micro_f1", "macro_f1")
OF_NUMBERS = ("pearson", "spearman")
OF_COMPLETIONS = ("exact_match", "rouge_l")
COMPARED = ("first", "second")  # the classes of pairs: which of the two has the larger number
CHOSEN = ("wrong", "right")  # the classes of a choice
RARER = "rarer"  # stands for the class that is rarer in train

LONGEST_COLUMN = LONGEST_NAME - len("_pair")  # the column of a second text may add this ending
# Numbers to predict whose squared errors float32 can hold.
LARGEST_NUMBER = 1e15
SHORTEST_SCALE = 1e-15
LONGEST_TEMPLATE = 10_000  # characters of a template of texts


def has_exact_interval(metric: str, *, in_groups: bool) -> bool:
    """Return whether a metric's interval is exact, because it is a share of examples or of groups.

    All other intervals are bootstrap intervals.
    """
    return metric == "exact_match" if in_groups else metric in ("accuracy", "f1")


ONLY = {  # keys of an entry that only some forms go with
    "choices": "choices need a label with {count} names, one for each in their order",
    "group": "group: needs a label of classes or of a number",
    "pairs": "pairs compare numbers: the label needs low and high, and no names",
    "stratify": "stratify: needs a label of classes",
    "template": "template: needs a label of completions",
    "select": "select: needs a label of completions or messages",
    "tenant": "tenant: needs a label of classes or of a number",
    "held_out_tenants": "held_out_tenants: needs a label of classes or of a number",
}
APART = {  # keys of an entry that exclude each other
    "tenant": ("choices", "group", "pairs", "stratify"),  # a tenant's cut takes a share of each class anyway
    "stratify": ("choices", "group"),
    "choices": ("group",),  # they are groups
}


LabelNames = Annotated[Names, AfterValidator(check_label_names)]


class LabelSpec(StrictModel):
    """Base class of label forms. A subclass adds keys, and checks whether the rest of the entry is compatible."""

    identified_by: ClassVar[frozenset[str]]  # keys of this type alone, one of which is enough to recognize it
    allowed_metrics: ClassVar[tuple[str, ...]]  # the metrics that may score it
    compatible_keys: ClassVar[frozenset[str]] = frozenset()  # keys of ONLY
    has_new_tokens: ClassVar[bool] = False  # whether a text of limited length is generated, by a model without a head

    column: str = Field(description="column with the label")

    def check(self, entry: "DatasetEntry") -> None:
        """Check that the rest of an entry is compatible with this form.

        Raises:
            ValueError: if a key or a metric is not compatible.
        """
        for key, needs in ONLY.items():
            if getattr(entry, key) and key not in self.compatible_keys:
                raise ValueError(needs.format(count=len(entry.choices)))
        for key, others in APART.items():
            for other in others:
                if getattr(entry, key) and getattr(entry, other):
                    raise ValueError(f"{key}: cannot be combined with {other}")
        self._check_text(entry)
        self._check_metrics(entry)
        for column in (*entry.text, entry.tenant or ""):
            longest = LONGEST_TEMPLATE if is_template(column) else LONGEST_COLUMN
            if len(column) > longest:
                allowed = f"at most {longest:,} are allowed"
                raise ValueError(f"column {column[:20]!r}... of {len(column):,} characters; {allowed}")

    def _check_text(self, entry: "DatasetEntry") -> None:
        if not entry.text:
            raise ValueError("text: required: one column, or two for pairs")

    def _check_metrics(self, entry: "DatasetEntry") -> None:
        for metric in entry.metrics:
            if metric not in self.allowed_metrics:
                near = nearest(metric, self.allowed_metrics)
                allowed = ", ".join(self.allowed_metrics)
                raise ValueError(f"metrics: {metric} does not fit this label{near}; allowed are {allowed}")


class Classes(LabelSpec):
    """A label column with a class, by number or name."""

    identified_by = frozenset({"names"})
    allowed_metrics = OF_CLASSES
    compatible_keys = frozenset({"choices", "group", "held_out_tenants", "stratify", "tenant"})

    names: LabelNames = Field(
        (), description="at least two, in class order; tenants that have other names than each other need none"
    )
    positive: str | None = Added(
        description="of two names the one that f1 is about; or rarer: the one that train has less of, the second of "
        "equals; this is the default in data/datasets.yaml, and the second name elsewhere",
    )

    tune_threshold: Literal["accuracy", "f1", "macro_f1", "matthews_correlation"] | None = Added(
        description="of two names: the second is the answer from the probability on that is best for this metric on "
        "validation, not from 0.5 on",
    )

    def _check_metrics(self, entry: "DatasetEntry") -> None:
        if self.tune_threshold is not None and (len(self.names) != 2 or entry.choices or entry.tenant):
            raise ValueError("tune_threshold: needs exactly two names, without choices and tenants")
        if len(self.names) < 2 and (self.names or entry.tenant is None):
            raise ValueError("names: at least two class names are required, in class order")
        known = self.names if entry.tenant else (*self.names, RARER)
        if self.positive is not None and (len(self.names) != 2 or self.positive not in known or entry.choices):
            near = nearest(self.positive, self.names)
            raise ValueError(f"positive: must be one of exactly two names, got {self.positive}{near}; not with choices")
        if entry.choices:
            self._check_choices(entry)
        super()._check_metrics(entry)
        if "f1" in entry.metrics and len(self.names) != 2:
            raise ValueError("f1 scores the second of two classes; use macro_f1 for more")
        if entry.group is None and "exact_match" in entry.metrics:
            raise ValueError("exact_match scores groups: define them with `group`")

    def _check_choices(self, entry: "DatasetEntry") -> None:
        if len(self.names) != len(entry.choices):
            raise ValueError(ONLY["choices"].format(count=len(entry.choices)))
        if not any(is_template(template) and CHOICE in fields(template) for template in entry.text):
            raise ValueError(f"choices need a text with {{{CHOICE}}}, got {', '.join(entry.text)}")
        if entry.metrics != ("accuracy",):
            raise ValueError(f"choices support only accuracy, got {', '.join(entry.metrics)}")


class Threshold(Classes):
    """Two classes derived from a number: above the threshold or not. Numbers too close to it are dropped."""

    identified_by = frozenset({"threshold", "margin"})
    compatible_keys = frozenset({"group", "stratify"})

    names: Annotated[tuple[str, str], AfterValidator(all_different), AfterValidator(check_label_names)] = Field(
        description="not above, above"
    )
    threshold: StrictFloat = Field(description="numbers above it are of the second class")
    margin: StrictFloat = Field(0.0, ge=0, description="rows with |number - threshold| < margin are dropped")


class MultiLabel(LabelSpec):
    """Any number of labels for a text, or none: a list of names, or a text that joins them."""

    identified_by = frozenset({"multi_label", "separator"})
    allowed_metrics = OF_MULTI_LABEL

    column: str = Field(
        alias="multi_label", description="column with a list of labels, or with labels joined by the separator"
    )
    separator: str = Field(";", min_length=1, description="separator of labels in a text")
    names: LabelNames = Field(min_length=2, description="all labels, in the order of the outputs")


class Number(LabelSpec):
    """A number to predict: regression; or, with `pairs`, to compare.

    `low` and `high` are the ends of the scale, and of plots. Labels outside are an error, predictions are not clipped.
    """

    identified_by = frozenset({"low", "high"})
    allowed_metrics = OF_NUMBERS
    compatible_keys = frozenset({"group", "held_out_tenants", "pairs", "tenant"})

    low: StrictFloat = Field(description="lowest possible label")
    high: StrictFloat = Field(description="highest possible label")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self

    @model_validator(mode="after")
    def _float32_holds_squares(self) -> Self:
        largest = max(abs(self.low), abs(self.high))
        length = self.high - self.low
        if largest > LARGEST_NUMBER or length < SHORTEST_SCALE:
            allowed = f"at most {LARGEST_NUMBER:g} in size, on a scale of at least {SHORTEST_SCALE:g}"
            raise ValueError(f"numbers from {self.low:g} to {self.high:g}; allowed: {allowed}; choose another unit")
        return self

    def _check_metrics(self, entry: "DatasetEntry") -> None:
        if entry.pairs is None:
            super()._check_metrics(entry)
            return
        if len(entry.text) != 1:
            raise ValueError(f"pairs are made of one text column, got {', '.join(entry.text)}")
        Classes(column=self.column, names=COMPARED)._check_metrics(entry)


class Completion(LabelSpec):
    """A text to generate, given the example's text as the prompt."""

    identified_by = frozenset({"completion"})
    allowed_metrics = OF_COMPLETIONS
    compatible_keys = frozenset({"template", "select"})
    has_new_tokens = True

    column: str = Field(alias="completion", description="column with the text to generate")
    names: Names = Field((), description="the text for each class; with threshold, for not above and above")
    threshold: StrictFloat | None = Field(None, description="of a column with numbers: what divides the two names")
    margin: StrictFloat = Field(0.0, ge=0, description="rows with |number - threshold| < margin are dropped")

    @model_validator(mode="after")
    def _names_go_with_what_they_are_of(self) -> Self:
        if self.threshold is not None and len(self.names) != 2:
            raise ValueError("threshold: requires two names: one for numbers not above it, one for those above")
        if self.margin and self.threshold is None:
            raise ValueError("margin: requires threshold")
        return self

    def _check_text(self, entry: "DatasetEntry") -> None:
        super()._check_text(entry)
        if len(entry.text) > 1:
            raise ValueError("a completion has one text, its prompt, which may be a template")


class Conversation(LabelSpec):
    """A conversation, in which a language model generates the assistant's messages. The entry has no `text`."""

    identified_by = frozenset({"messages"})
    allowed_metrics = OF_COMPLETIONS
    compatible_keys = frozenset({"select"})
    has_new_tokens = True

    column: str = Field(alias="messages", description="column with a list of messages with role and content")

    def _check_text(self, entry: "DatasetEntry") -> None:
        if entry.text or entry.span:
            raise ValueError("messages hold the whole example: leave out text and span")


class Pairs(StrictModel):
    """Two classes derived from numbers: which of two texts of a split has the larger one."""

    margin: StrictFloat = Field(
        gt=0, description="pairs whose numbers differ by less are dropped; above 0, to exclude ties"
    )


# A label has no `kind`, its keys decide: the first form that is told by one of them, else the last.
FORMS: list[type[LabelSpec]] = [Completion, Conversation, MultiLabel, Number, Threshold, Classes]


def _in_its_form(label: Any) -> Any:
    """Parse a label by its form. Only one form is checked, so that a mistake is reported once."""
    if isinstance(label, LabelSpec):
        return label
    given = label if isinstance(label, dict) else {}
    keys = {renamed.KEYS.get(key, key) for key in given}
    form = next((form for form in FORMS if form.identified_by & keys), FORMS[-1])
    return form.model_validate(label)


Label = Annotated[SerializeAsAny[LabelSpec], BeforeValidator(_in_its_form)]
