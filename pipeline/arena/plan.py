"""Plan the training runs of a comparison and the cells to which they belong."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline import params
from pipeline.arena.preset import PATH, VERSION, Method, Preset, SampleSizes, section_of
from pipeline.arena.record import FOLDER
from pipeline.core.digests import sha256
from pipeline.core.errors import UserError, nearest
from pipeline.data import content
from pipeline.data.content import Source
from pipeline.methods.planning import list_types
from pipeline.params import LsrParams, PeftParams, TrainView
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.reading import apply_overrides, load_entry
from pipeline.params.sections import SHORT_RUNS, USUAL_EPOCHS, HeadOnlyParams, MethodParams
from pipeline.params.sources import Split

PRIVATE = Path(".cache/arena/labels")
Digests = dict[str, str]  # SHA-256 of files by relative name
UNREAD = {"data", "model", "adapter", "tenants"}  # the first three only name what other fields of the view hold


class Multipliers(NamedTuple):
    """The result of tuning: factors of the learning rates and the number of epochs in params.yaml."""

    multiplier: float = 1.0
    head_multiplier: float = 1.0
    epochs_multiplier: float = 1.0


class Unseen(NamedTuple):
    """A tenant without any text in training."""

    entry: DatasetEntry
    labels: tuple[str, ...]  # the label that each class of the entry has for the tenants in training


@dataclass(frozen=True)
class TrainingRun:
    """One training run: a method on a task with two learning rates and a seed."""

    preset: str  # name of the preset
    task: str
    method: str
    seed: int
    view: TrainView
    sample_sizes: SampleSizes
    rate: float | None
    head_rate: float
    key: str
    chosen: Method  # the method's changes in the preset
    epochs: int | None = None  # number of epochs, if it is tuned: then the last one alone is scored
    unseen_tenants: Mapping[str, Unseen] = field(default_factory=dict)  # those without any text in training, by name
    by_hash: tuple[Split, ...] = ()  # the splits to bring into the order of hashes before their first rows are read
    is_quantized: bool = False  # scored at all precisions, too
    is_tuned: bool = False  # whether it has the tuned setting

    @property
    def writes(self) -> bool:
        """Whether generated texts are scored."""
        return self.view.dataset.label.has_new_tokens

    @property
    def is_alone(self) -> bool:
        """Whether this is the base model itself, generating text without an adapter."""
        return self.writes and not self.chosen.trained and isinstance(self.view.section, HeadOnlyParams)


class Cell:
    """A method on a task: tuned independently, one row of the tables."""

    def __init__(self, name: str, preset: Preset, task: str, method: str) -> None:
        self.name = name
        self.preset = preset
        self.task = task
        self.method = method
        self.title = f"{task}: {method}"  # name in messages and for `--only`
        self.chosen = preset.methods[method]
        self.seeds = preset.seeds[: self.chosen.seeds]  # seeds with which the method is repeated
        self._trainings: dict[tuple[Multipliers, int], TrainingRun] = {}

    @cached_property
    def quantized_seeds(self) -> Sequence[int]:
        """The seeds whose tuned training runs are scored at all precisions.

        None after a refit, which leaves no split that could choose a precision.
        """
        averaged = chain.from_iterable(self.preset.means.values())
        is_quantized = self.task in averaged and not self.chosen.features
        return self.preset.quantized_seeds if is_quantized and not self._view.train.refit else ()

    def first(self) -> TrainingRun:
        """Return the training run with the learning rates of params.yaml and the first seed."""
        return self.training(Multipliers(), self.preset.seeds[0])

    @property
    def labels(self) -> Path:
        """The file with the test labels in the order of predictions; for a user's own data, it is in the cache."""
        first = self.first()
        folder = FOLDER / self.name / "labels"
        # Which text is expected is not written, only that it is right to write it.
        if first.view.dataset.source.kind == "files" and not first.writes:
            folder = PRIVATE / self.name
        return folder / f"{self.task}.csv"

    @cached_property
    def rates(self) -> Sequence[str]:
        """The names of the method's learning rates in its section, the main one first; none if only a head is tuned."""
        return list(self._view.section.rates) if self.chosen.is_trained else []

    def training(self, setting: Multipliers, seed: int) -> TrainingRun:
        """Return the training run with a setting and a seed."""
        place = (setting, seed)
        if place not in self._trainings:
            self._trainings[place] = self._training(setting, seed)
        return self._trainings[place]

    def _training(self, setting: Multipliers, seed: int) -> TrainingRun:
        section = self._view.section
        train = self._view.train
        rates = {name: _times(getattr(section, name), setting.multiplier) for name in self.rates}
        # If only the head is trained, its rate is tuned in place of the adapter's.
        head_rate = _times(train.head_learning_rate, setting.head_multiplier if rates else setting.multiplier)
        epochs = scale_epochs(train.epoch_count, setting.epochs_multiplier)
        changes = {
            "seed": seed,
            "section": section.model_copy(update=rates),
            "train": train.model_copy(update={"head_learning_rate": head_rate, "epochs": epochs}),
        }
        view = self._view.model_copy(update=changes)
        training = TrainingRun(
            preset=self.name,
            task=self.task,
            method=self.method,
            seed=seed,
            view=view,
            sample_sizes=self._sample_sizes,
            rate=rates[self.rates[0]] if rates else None,
            head_rate=head_rate,
            key="",
            chosen=self.chosen,
            epochs=epochs if self._is_scored_last else None,
            unseen_tenants=self._unseen,
            by_hash=self._by_hash,
        )
        return replace(training, key=key_of(training, self.preset.files))

    @cached_property
    def _sample_sizes(self) -> SampleSizes:
        usual = self.preset.sample_sizes.model_dump()
        return SampleSizes.model_validate(usual | self.preset.tasks[self.task].sample_sizes)

    @property
    def _is_scored_last(self) -> bool:
        """Whether the last epoch alone is scored, because the number of epochs is tuned."""
        return self.chosen.is_trained and bool(self.preset.tuning.epochs)

    @cached_property
    def _unseen(self) -> dict[str, Unseen]:
        """The tenants without any text in training, by name."""
        unseen = dict[str, Unseen]()
        for name, labels in self.preset.tasks[self.task].unseen.items():
            unseen[name] = Unseen(load_entry("data", name), labels)
        return unseen

    @cached_property
    def _by_hash(self) -> tuple[Split, ...]:
        """The splits that must be sorted by hashes.

        Raises:
            UserError: if the preset keeps the order of a file although no split would be sorted.
        """
        in_order_of_source = find_unshuffled_splits(self._view.dataset, self._sample_sizes)
        if self.preset.tasks[self.task].order == "hash":
            return in_order_of_source
        if not in_order_of_source:
            where = f"{PATH}: {self.name}.tasks.{self.task}.order: file"
            raise UserError(f"{where} changes nothing: the source provides no split of which a part is read; remove it")
        return ()

    @cached_property
    def _view(self) -> TrainView:
        """The training run's view before tuning."""
        adapter = self.chosen.adapter
        changes = self.preset.tasks[self.task]
        # A preset may set keys that only some methods have, and make sections that params.yaml does not have.
        sections = {method.adapter for method in self.preset.methods.values()}
        others = sections.union(params.load_params().sections) - {adapter}
        values = {"train.epochs": USUAL_EPOCHS} | self.preset.params | changes.params | self.chosen.params
        overrides = {
            **{key: value for key, value in values.items() if section_of(key) not in others},
            "train.processes": 1,  # workers share the machine instead
            "tenants.shared_adapter": "trained",
            "adapter": adapter,
            "data": self.preset.row_of(self.task),
            "model": self.preset.model,
            "seed": self.preset.seeds[0],
        }
        place = (self.name, "methods", self.method)
        view = apply_overrides(overrides, TrainView, PATH, place)
        row = view.dataset
        source = changes.source_of(row)
        dataset = row.model_copy(update={"source": source})
        return view.model_copy(update={"dataset": dataset})


def cells(name: str, preset: Preset, only: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a preset whose titles contain all of `only`, by task; or the one of exactly this title.

    Raises:
        UserError: if there is none.
    """
    listed = {}
    for task in preset.tasks:
        for method, chosen in preset.methods.items():
            if task in (chosen.tasks or preset.tasks):
                cell = Cell(name, preset, task, method)
                listed[cell.title] = cell
    if len(only) == 1 and only[0] in listed:
        return [listed[only[0]]]
    matching = list(listed.values())
    for words in only:
        matching = [cell for cell in matching if words in cell.title]
    if matching:
        return matching
    words = " ".join(only)
    near = nearest(words, listed)
    raise UserError(f"--only {words}: no method on a task has this in its title{near}; a title is TASK: METHOD")


def find_unshuffled_splits(row: DatasetEntry, sample_sizes: SampleSizes) -> tuple[Split, ...]:
    """Return the splits that are read in part and have the order of the source, because it provides them.

    Splits cut from train, and pairs, are sorted by hashes.
    """
    if row.pairs:
        return ()
    provided = row.source.names.keys()
    in_part = list[Split]()
    if "validation" in provided and sample_sizes.validation != "all":
        in_part.append("validation")
    if "test" in provided and sample_sizes.test != "all":
        in_part.append("test")
    # Without a validation split, the checkpoint is chosen on test.
    if row.select_on == "test" and "test" in provided and sample_sizes.validation != "all":
        in_part.append("validation")
    return tuple(in_part)


def key_of(training: TrainingRun, pinned: Mapping[str, str]) -> str:
    """Return a hash of all inputs of a training run (values, entries, contents of files): 16 hexadecimal digits.

    `pinned` has the SHA-256 of files by path, which need not exist here.

    Names of entries and sections are not hashed, and neither are values equal to the defaults of our schema or of PEFT.
    So keys stay the same when an option is removed, or added with the former behavior as its default. If a default
    changes, increase VERSION.
    """
    view = training.view
    method = training.chosen
    section = view.section
    head = _read_head(view, method)
    has_tenants = view.dataset.tenant is not None
    usual = _defaults_in_peft(section.type) if isinstance(section, PeftParams) else {}
    values = section.model_dump(mode="json", exclude={"init_epochs"}, exclude_defaults=True)
    sources: list[Source] = [view.dataset.source, view.base_model.source]
    if isinstance(section, LsrParams) and section.source:
        sources.append(section.source)  # an adapter to go on from
    for name, value in usual.items():
        if name in values and values[name] == value:
            del values[name]
    values |= _read_init_epochs(section)
    read = view.model_dump(mode="json", exclude=UNREAD, exclude_defaults=True)
    read["tokenize"] = _read_tokenize(view, method)
    known = {
        **read,
        "section": {"type": view.adapter} | values,  # the sections without a type have fixed names
        "version": VERSION,
        "sample_sizes": training.sample_sizes.model_dump(mode="json"),
        "files": digests(sources, pinned),
        **({"by_hash": sorted(training.by_hash)} if training.by_hash else {}),
        **({} if method.trained else {"trained": False}),
        **({"features": method.features} if method.features else {}),
        **({"tenants": view.tenants.shared_adapter} if has_tenants else {}),
        **({"tenants_head": head} if has_tenants and head != "own" else {}),
        **({"scored": "last"} if training.epochs is not None else {}),
        **({"unseen": _hash_unseen(training.unseen_tenants, pinned)} if training.unseen_tenants else {}),
    }
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_tokenize(view: TrainView, method: Method) -> dict[str, Any]:
    """Return the values of `tokenize`, with `standardize_labels` where it standardizes: no labels were before.

    Regressions fit numbers in any unit.
    """
    values = view.tokenize.model_dump(mode="json", exclude={"standardize_labels"}, exclude_defaults=True)
    if view.standardizes_labels and not method.features:
        values["standardize_labels"] = "auto"
    return values


def _read_init_epochs(section: MethodParams) -> dict[str, Any]:
    """Return `init_epochs` where it changes a short LoRA run: before there was such a key, each had one epoch."""
    if not isinstance(section, LsrParams) or section.init not in SHORT_RUNS or section.init_epochs == 1:
        return {}
    return {"init_epochs": section.init_epochs}


def _read_head(view: TrainView, method: Method) -> str:
    """Return `tenants.head` as a method reads it: regressions have no deviations, and nothing untrained a head."""
    head = view.tenants.head
    is_read = method.is_trained or (method.features and head == "shared")
    return head if is_read else "own"


def _hash_unseen(unseen: Mapping[str, Unseen], pinned: Mapping[str, str]) -> dict[str, Any]:
    known = {}
    for name, tenant in unseen.items():
        values = tenant.entry.model_dump(mode="json", exclude_defaults=True)
        known[name] = [values, tenant.labels, digests([tenant.entry.source], pinned)]
    return known


def scale_epochs(epochs: int, multiplier: float) -> int:
    """Return the number of epochs times a factor, rounded to at least one."""
    return max(1, round(epochs * multiplier))


@cache
def _defaults_in_peft(method: str) -> dict[str, Any]:
    config = list_types().get(method)
    return {field.name: field.default for field in fields(config)} if config else {}


def digests(
    sources: Iterable[Source],
    pinned: Mapping[str, str] = MappingProxyType({}),
) -> list[Digests]:
    """Return the SHA-256 of each local file, by relative name, for each file or folder that the sources name.

    The digests of `pinned` files are taken as given: the files may be elsewhere.
    """
    paths = chain.from_iterable(map(content.iter_local_paths, sources))
    return [{".": pinned[path]} if path in pinned else digests_of(path) for path in map(str, paths)]


@cache  # files do not change meanwhile
def digests_of(path: str) -> Digests:
    """Return the SHA-256 of a file or of all files in a folder.

    Raises:
        UserError: if there is none.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    digests: Digests = {}
    for file in content.files(Path(path)):
        name = file.relative_to(path).as_posix()
        digests[name] = sha256(file)
    return digests


def _times(rate: float, multiplier: float) -> float:
    return min(1.0, float(f"{rate * multiplier:.6g}"))  # spurious digits would change the key; 1 is the maximum
