"""Find values that have no effect, given the others: each is rejected in one line.

params.yaml is for all data and methods, so it also has values that the chosen ones do not read. A value counts as set
if it differs from the usual one: the schema's default or, for a key without default, the committed value.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.schema import Params
from pipeline.params.sections import (
    MAX_EPOCHS,
    READ,
    SHORT_RUNS,
    USUAL_EPOCHS,
    LsrParams,
    MethodParams,
    RegressionParams,
    TokenizeParams,
    TrainParams,
)

STANDARDIZE = "tokenize.standardize_labels"
# Of keys without a default in the schema, the values of the committed params.yaml.
COMMITTED = {
    STANDARDIZE: "auto",
    "train.epochs": "auto",
    "train.refit": False,
    "train.head_learning_rate": 0.002,
    "tenants.shared_adapter": "trained",
    "tenants.head": "auto",
    "tenants.precision": "8bit",
    "evaluate.max_new_tokens": 64,
    "evaluate.regression_baseline": 2048,
}
UNREAD_BY_REGRESSION = {  # keys of train
    "epochs": "auto",
    "extend_epochs": "none",
    "patience": "none",
    "refit": False,
    "processes": 1,
    "head_learning_rate": 0.002,
    "weight_decay": 0.01,
    "warmup_ratio": 0.06,
    "class_weights": "none",
    "precision": "fp32",
    "compile": False,
    "report_to": (),
}


class Idle(NamedTuple):
    """A key whose value has no effect."""

    key: str
    value: Any
    usual: Any  # the value that sets nothing
    reason: str

    @property
    def line(self) -> str:
        """The error message: the key and value, why they have no effect, and the value to leave."""
        usual = list(self.usual) if isinstance(self.usual, tuple) else self.usual
        return f"{self.key}: {self.value} has no effect: {self.reason}; leave it at {usual}"


def idle_in_file(params: Params, entry: DatasetEntry) -> Iterator[Idle]:
    """Yield the values of params.yaml that are set without effect on a data set entry."""
    is_of_tenants = entry.tenant is not None
    yield from idle_in_labels(params.tokenize, entry)
    yield from idle_in_training(resolve_epochs(params.train, entry))
    yield from idle_in_validation(params.train, entry)
    reasons = dict[str, str]()
    if not is_of_tenants:
        for key in ("shared_adapter", "head", "precision"):
            reasons[f"tenants.{key}"] = "the data have no column of tenants"
    if entry.label.has_new_tokens:
        reasons["train.head_learning_rate"] = "a language model has no head of its own to train"
        reasons["evaluate.regression_baseline"] = "no regression predicts a text"
    else:
        reasons["evaluate.max_new_tokens"] = "the data have no completions"
    for key, reason in reasons.items():
        yield from _set(key, attrgetter(key)(params), reason)
    section = params.sections[params.adapter]
    if not (is_of_tenants and params.tenants.folder):  # the folder with the adapter
        yield from idle_in_section(section)
        if isinstance(section, RegressionParams):
            yield from _idle_with_regression(params.train)
            reason = "adapter: regression fits numbers in any unit"
            yield from _set(STANDARDIZE, params.tokenize.standardize_labels, reason)
            if is_of_tenants:
                yield from _set("tenants.head", params.tenants.head, "adapter: regression fits each tenant by itself")


def idle_in_labels(tokenize: TokenizeParams, entry: DatasetEntry) -> Iterator[Idle]:
    """Yield the value about numbers if it is set for a data set entry whose labels are none."""
    if not entry.predicts_number:
        yield from _set(STANDARDIZE, tokenize.standardize_labels, "the labels are not numbers to predict")


def idle_in_validation(train: TrainParams, entry: DatasetEntry) -> Iterator[Idle]:
    """Yield `train.refit` if it is set for a data set entry without a validation split."""
    if not _has_validation(entry):
        reason = "the data have no validation split to learn from, and the test split is none"
        yield from _set("train.refit", train.refit, reason)


def can_refit(params: Params, entry: DatasetEntry) -> bool:
    """Return whether `train.refit` would have an effect."""
    return _has_validation(entry) and not isinstance(params.sections[params.adapter], RegressionParams)


def _has_validation(entry: DatasetEntry) -> bool:
    return entry.select_on == "validation"


def _idle_with_regression(train: TrainParams) -> Iterator[Idle]:
    for name, usual in UNREAD_BY_REGRESSION.items():
        value = getattr(train, name)
        is_resolved = name == "epochs" and value == USUAL_EPOCHS  # the number that `auto` stands for
        if value != usual and not is_resolved:
            yield Idle(f"train.{name}", value, usual, "adapter: regression has no training loop")


def idle_in_training(train: TrainParams) -> Iterator[Idle]:
    """Yield the training parameters that are set without effect, whatever the method and the data."""
    most = MAX_EPOCHS if train.epochs == "auto" else train.epochs
    yield from _idle_patience(train, most if train.extend_epochs == "none" else max(most, MAX_EPOCHS))


def idle_in_epochs(train: TrainParams, epochs: int) -> Iterator[Idle]:
    """Yield values without effect if `train.extend_epochs: auto` trains for at least this many epochs."""
    most = epochs
    if train.epochs == "auto":
        most = MAX_EPOCHS
    elif train.epochs > epochs:
        most = train.epochs
    elif train.epochs != USUAL_EPOCHS:  # the number to which `auto` is resolved
        reason = f"train.extend_epochs: auto trains for {epochs} epochs of these data"
        yield from _set("train.epochs", train.epochs, reason)
    yield from _idle_patience(train, most)


def _idle_patience(train: TrainParams, most: int) -> Iterator[Idle]:
    if train.patience != "none" and train.patience + 1 >= most:
        reason = f"it ends training after {train.patience + 1} epochs at the earliest, and there are {most} at most"
        yield Idle("train.patience", train.patience, "none", reason)


def idle_in_section(section: MethodParams) -> Iterator[Idle]:
    """Yield the values of a method's section that are set without effect."""
    if not isinstance(section, LsrParams):
        return
    if not section.reads_examples:
        reason = f"only init: {', '.join(READ)} reads examples"
        for name in ("init_examples", "init_head_steps"):
            value = getattr(section, name)
            usual = LsrParams.model_fields[name].default
            if value != usual:
                yield Idle(f"{section.key}.{name}", value, usual, reason)
    if section.init not in SHORT_RUNS and section.init_epochs != "auto":
        reason = f"only init: {' and '.join(SHORT_RUNS)} have a short LoRA run"
        yield Idle(f"{section.key}.init_epochs", section.init_epochs, "auto", reason)
    if section.total_directions != "none":
        reason = "total_directions chooses the rank of each layer"
        if section.rank_shape != (1,):
            shape = list(section.rank_shape)
            yield Idle(f"{section.key}.rank_shape", shape, (1,), reason)
        if section.separation_rank not in ("auto", 1):
            yield Idle(f"{section.key}.separation_rank", section.separation_rank, "auto", reason)


def resolve_epochs(train: TrainParams, entry: DatasetEntry) -> TrainParams:
    """Replace `epochs: auto` by its number; with tenants it stays, as it depends on their number of texts."""
    if train.epochs == "auto" and entry.tenant is None:
        return train.with_epochs(USUAL_EPOCHS)
    return train


def _set(key: str, value: Any, reason: str) -> Iterator[Idle]:
    if value != COMMITTED[key]:
        yield Idle(key, value, COMMITTED[key], reason)
