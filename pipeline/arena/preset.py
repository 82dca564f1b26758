"""The schema of pipeline/arena.yaml: each preset is a comparison of methods on tasks.

Methods and tasks are overrides of params.yaml by dotted key, so the arena can compare any training runs.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, StrictFloat, StrictInt, StrictStr, model_validator

from pipeline.core.errors import UserError, nearest
from pipeline.data import content
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.reading import load_entry
from pipeline.params.sections import Count, Section
from pipeline.params.sources import Named, PackageSource, Sha256, Slug, TableSource, all_different
from pipeline.params.validation import validate
from pipeline.params.yaml_file import read_yaml

PATH = Path("pipeline/arena.yaml")
VERSION = 1  # increase it when a change of code invalidates old records: all are then run again
# A name in tables and plots, without characters that a file name or a table cannot contain.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 =.,()+_-]{0,39}$")]
Factor = Annotated[StrictFloat, Field(gt=0, le=1000)]
Factors = Annotated[tuple[Factor, ...], AfterValidator(all_different)]
Amount = Literal["all"] | Count
Datasets = Mapping[str, DatasetEntry]  # data set entries by task
Features = Literal["mean", "first", "nearest", "words"]  # states: their mean twice, the first; counts of tokens
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
OWN_KEYS = {
    "data",
    "model",
    "seed",
    "adapter",
    "train.processes",
    "tenants.shared_adapter",
}  # the arena sets them itself
# Keys without effect here, like the section evaluate: the arena scores in its own way.
UNREAD_KEYS = {"train.report_to", "tenants.precision"}
HEAD = "tenants.head"
MAX_NEW_TOKENS = "max_new_tokens"  # the key of sample_sizes that has no value `all`
WRITES_NOTHING = "max_new_tokens has no effect: the data have no completions"
OF_ALL = {"tokenize", "train", "tenants", "evaluate"}  # the sections of params.yaml that are not for methods


def section_of(key: str) -> str:
    """Return the section of a dotted key of params.yaml."""
    return key.partition(".")[0]


def _without_own_keys(values: dict[str, Any]) -> dict[str, Any]:
    for key in sorted(values):
        if key in OWN_KEYS:
            raise ValueError(f"{key} is set by the arena itself")
        if key in UNREAD_KEYS or key.startswith("evaluate."):
            raise ValueError(f"{key} has no effect: the arena does not read it")
    return values


Key = Annotated[str, Field(pattern=r"^[a-z0-9_.]+$", description="a dotted key of params.yaml")]
Overrides = Annotated[dict[Key, JsonValue], AfterValidator(_without_own_keys)]


class SampleSizes(Section):
    """How much of each split a training run reads: the first rows in the order of hashes, which is a random sample.

    The sample is the same for all methods and seeds, whatever the order of the source. For tenants, the numbers are per
    tenant. A whole split is read in its own order. Further rows of train are added to validation, because it selects
    learning rates, and a small one selects badly.
    """

    train: Amount
    validation: Amount
    test: Amount
    max_tokens: Amount = Field(description="tokens; longer texts are left out")
    max_new_tokens: Count | None = Field(
        None,
        exclude_if=lambda count: count is None,
        description="of completions, at most so many are written for a prompt of test",
    )


def _are_amounts(sample_sizes: dict[str, Amount]) -> dict[str, Amount]:
    if sample_sizes.get(MAX_NEW_TOKENS) == "all":
        raise ValueError(f"{MAX_NEW_TOKENS}: must be a number of tokens, got all")
    return sample_sizes


SampleSizesOfTask = Annotated[
    dict[Literal["train", "validation", "test", "max_tokens", "max_new_tokens"], Amount], AfterValidator(_are_amounts)
]


class TaskChanges(Section):
    """The changes on a task."""

    row: Slug | None = Field(None, description="of pipeline/datasets.yaml, if the task has another name")
    kind: Literal["hub", "files"] | None = Field(None, description="of the row's source, if the row describes both")
    params: Overrides = Field(default_factory=dict)
    sample_sizes: SampleSizesOfTask = Field(default_factory=dict)
    order: Literal["hash", "file"] = Field(
        "hash",
        description="in which a split that the source provides is read, if not all of it is. file: that of the file, "
        "where it is random already, or nearly all of its rows are read",
    )

    unseen: dict[Slug, tuple[StrictStr, ...]] = Field(
        default_factory=dict,
        description="data set entries that are scored as tenants added later, without any text in training, and for "
        "each of their classes the label that it has for the tenants of this task",
    )

    def source_of(self, row: DatasetEntry) -> TableSource | PackageSource:
        """Return the source of an entry, of the kind that this task uses."""
        return row.source.model_copy(update={"kind": self.kind}) if self.kind else row.source


class Tuning(Section):
    """The tuning trials of each method on each task; the validation score decides.

    All trials use the first seed; the best setting is repeated with `seeds` seeds, until the setting with the best mean
    has that many: so a rate that suits a single seed is not chosen. With `epochs`, a training run is scored after its
    last epoch alone, rather than at the best of its epochs.
    """

    rates: Annotated[Factors, Field(min_length=1)] = Field(description="factors of the learning rates of the method")
    extra_rates: Annotated[StrictInt, Field(ge=0, le=10)] = Field(
        description="further tries beyond an end of the rates, one by one, as long as the best one is at that end"
    )
    seeds: Annotated[StrictInt, Field(ge=1, le=5)] = Field(1, description="of the best of the tries")
    epochs: Factors = Field((), description="factors of train.epochs, tried at the best rate; 1 always is")
    head_rates: Factors = Field(description="factors of train.head_learning_rate, tried at the best rate; 1 always is")


class Method(Section):
    """The overrides of a method: `adapter`, and keys of its section or of others."""

    adapter: StrictStr
    params: Overrides = Field(default_factory=dict)
    tasks: tuple[Slug, ...] = Field((), description="on which it is run; none named: on all")
    seeds: Count | None = Field(None, description="how many of the preset's; by default all")
    trained: bool = Field(True, description="or scored as it is initialized, to know what the training adds")
    features: Features | None = Field(
        None,
        description="in place of training, for classes: a logistic regression on the mean of the encoder's states, "
        "on the first of them, or on TF-IDF of tokens (words); or the nearest class mean, each feature "
        "divided by its deviation within classes (nearest)",
    )

    @model_validator(mode="after")
    def _sets_what_it_reads(self) -> Self:
        if self.adapter == "regression":
            raise ValueError("adapter: regression is not trained by the arena; set adapter: head_only and features")
        if self.features and self.adapter != "head_only":
            raise ValueError(f"adapter: {self.adapter} has no effect: features are in place of it; set it to head_only")
        if self.features and not self.trained:
            raise ValueError("trained: false has no effect: features are in place of training; remove it")
        for key in self.params:
            section = section_of(key)
            if section not in OF_ALL | {self.adapter}:
                raise ValueError(f"params: {key} has no effect: the method's adapter is {self.adapter}")
            # What is scored as initialized generates texts in the precision of training.
            is_read = self.is_trained or (key == "train.precision" and not self.features)
            if section == "train" and not is_read:
                raise ValueError(f"params: {key} has no effect: the method is not trained")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether it has learning rates to tune."""
        return self.trained and self.features is None


class Hypothesis(Section):
    """A pre-registered hypothesis, written before the training runs; the comparison reports whether it held."""

    method: Name
    expected: Literal["equivalent", "better"]
    versus: Name
    on: Name = Field(description="one of the averages or tasks")


class Preset(Section):
    """One comparison: every method has the same data and the same number of tuning trials."""

    model: Named
    tasks: Annotated[dict[Slug, TaskChanges], Field(min_length=1)] = Field(description="rows of pipeline/datasets.yaml")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(all_different)]
    baseline: Name = Field(description="the method that others are compared with")
    tuning: Tuning
    sample_sizes: SampleSizes
    params: Overrides = Field(description="overrides for all")
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    averages: dict[Name, Annotated[tuple[Slug, ...], Field(min_length=2), AfterValidator(all_different)]] = Field(
        default_factory=dict,
        description="means over tasks that share no texts, the main one last; a task in none of them is a variant of "
        "another. Without this key the average is over all tasks",
    )
    files: dict[str, Sha256] = Field(
        default_factory=dict, description="the SHA-256 of files that tasks name, by path: records are of these alone"
    )
    margin: Factor = Field(1.0, description="percentage points within which methods are equivalent")
    quantized_seeds: tuple[Seed, ...] = Field(
        (), description="the seeds with which a tuned method is scored in all precisions too, on the tasks of averages"
    )
    hypotheses: tuple[Hypothesis, ...] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for place, name, known in self._references():
            if name not in known:
                listed = ", ".join(known)
                raise ValueError(f"{place}: no {name!r} here{nearest(name, known)}; known: {listed}")
        self._check_keys()
        self._check_seeds()
        rows = {name: load_entry("data", self.row_of(name)) for name in self.tasks}
        self._check_max_new_tokens(rows)
        self._check_kinds(rows)
        self._check_params(rows)
        self._check_files(rows)
        self._check_averages(rows)
        self._check_tenants(rows)
        return self

    def _references(self) -> Iterator[tuple[str, str, Iterable[str]]]:
        """Yield each reference to a method, task or seed: its place, the name, and the allowed names."""
        yield "baseline", self.baseline, self.methods
        for name, method in self.methods.items():
            for task in method.tasks:
                yield f"methods: {name}: tasks", task, self.tasks
        for name, tasks in self.averages.items():
            for task in tasks:
                yield f"averages: {name}", task, self.tasks
        seeds = [str(seed) for seed in self.seeds]
        for seed in self.quantized_seeds:
            yield "quantized_seeds", str(seed), seeds
        for number, hypothesis in enumerate(self.hypotheses, start=1):
            where = f"hypotheses: {number}"
            yield f"{where}: method", hypothesis.method, self.methods
            yield f"{where}: versus", hypothesis.versus, self.methods
            places = [*self.means, *self.tasks]
            yield f"{where}: on", hypothesis.on, places

    def _check_keys(self) -> None:
        read = OF_ALL | {method.adapter for method in self.methods.values()}
        overrides = {"params": self.params}
        for name, task in self.tasks.items():
            overrides[f"tasks: {name}: params"] = task.params
        for place, values in overrides.items():
            for key in values:
                if section_of(key) not in read:
                    raise ValueError(f"{place}: {key} has no effect: no method has this adapter")

    def _check_seeds(self) -> None:
        wanted = {"tuning: seeds": self.tuning.seeds}
        for name, method in self.methods.items():
            wanted[f"methods: {name}: seeds"] = method.seeds or 1
        most = len(self.seeds)
        for place, count in wanted.items():
            if count > most:
                raise ValueError(f"{place}: must be at most {most}, as many as seeds has, got {count}")

    def _check_max_new_tokens(self, rows: Datasets) -> None:
        writing = set()
        for name, row in rows.items():
            if row.label.has_new_tokens:
                writing.add(name)
        if self.sample_sizes.max_new_tokens is not None and not writing:
            raise ValueError(f"sample_sizes: {WRITES_NOTHING}")
        for name, task in self.tasks.items():
            if MAX_NEW_TOKENS in task.sample_sizes and name not in writing:
                raise ValueError(f"tasks: {name}: sample_sizes: {WRITES_NOTHING}")

    def _check_kinds(self, rows: Datasets) -> None:
        for name, task in self.tasks.items():
            source = rows[name].source
            place = f"tasks: {name}: kind"
            if task.kind == source.kind:
                raise ValueError(f"{place}: {task.kind} has no effect: it is the kind of the row already; remove it")
            described = {"hub": source.path, "files": source.files} if isinstance(source, TableSource) else {}
            if task.kind and not described.get(task.kind):
                raise ValueError(f"{place}: the row's source describes no {task.kind}")

    def _check_params(self, rows: Datasets) -> None:
        of_tenants = {name for name, row in rows.items() if row.tenant is not None}
        places = {"params": (self.params, of_tenants)}
        for name, task in self.tasks.items():
            places[f"tasks: {name}: params"] = task.params, of_tenants & {name}
        for name, method in self.methods.items():
            reads_heads = method.is_trained or method.features
            read = of_tenants & {*(method.tasks or self.tasks)} if reads_heads else set()
            places[f"methods: {name}: params"] = method.params, read
        for place, (values, read) in places.items():
            if HEAD in values and not read:
                raise ValueError(f"{place}: {HEAD} has no effect: no head of tenants is trained")
            if values.get("train.epochs") == "auto":
                raise ValueError(f"{place}: train.epochs: a number is needed: methods are compared at equal ones")

    def _check_files(self, rows: Datasets) -> None:
        named = set[str]()
        for name, task in self.tasks.items():
            sources = [task.source_of(rows[name]), *(load_entry("data", entry).source for entry in task.unseen)]
            for source in sources:
                named.update(map(str, content.iter_local_paths(source)))
        for path in self.files:
            if path not in named:
                raise ValueError(f"files: {path} has no effect: no task names this file{nearest(path, named)}")

    def _check_averages(self, rows: Datasets) -> None:
        for name, tasks in self.averages.items():
            if name in self.tasks:
                raise ValueError(f"averages: {name} is the name of a task")
            for first, second in combinations(tasks, 2):
                if rows[first].source == rows[second].source:
                    raise ValueError(f"averages: {name}: {first} and {second} share their texts; keep one of them")

    def _check_tenants(self, rows: Datasets) -> None:
        for name, task in self.tasks.items():
            place = f"tasks: {name}: unseen"
            if task.unseen and rows[name].tenant is None:
                raise ValueError(f"{place} has no effect: the data have no column of tenants")
            for entry, labels in task.unseen.items():
                _check_unseen(f"{place}: {entry}", load_entry("data", entry), labels)

    @property
    def means(self) -> dict[str, tuple[str, ...]]:
        """The tasks of each average by name, the main average last."""
        return self.averages if "averages" in self.model_fields_set else {"average": tuple(self.tasks)}

    def row_of(self, task: str) -> str:
        """Return the name of a task's data set entry."""
        return self.tasks[task].row or task


def _check_unseen(place: str, row: DatasetEntry, labels: tuple[str, ...]) -> None:
    classes = getattr(row.label, "names", None) or ()
    if row.tenant is not None or not classes:
        raise ValueError(f"{place}: an entry with named classes and without tenants is needed")
    if len({*labels}) != len(classes):
        listed = ", ".join(classes)
        raise ValueError(f"{place}: must be {len(classes)} different labels, for {listed}, got {len({*labels})}")


def load(name: str, path: Path = PATH) -> Preset:
    """Return a preset.

    Raises:
        UserError: if there is none of this name, or the file is not valid.
    """
    presets = {}
    for known, values in read_yaml(path).items():
        presets[known] = validate(Preset, values, path, (known,))
    if name not in presets:
        listed = ", ".join(presets)
        raise UserError(f"{path}: no preset {name!r}{nearest(name, presets)}; presets: {listed}")
    return presets[name]
