"""The trainings of a comparison: what makes one, and the entries that they belong to."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import params
from pipeline.arena.preset import PATH, VERSION, Method, Preset, Reads
from pipeline.arena.record import FOLDER
from pipeline.core.digests import sha256
from pipeline.core.errors import UserError, nearest
from pipeline.data import content
from pipeline.data.content import Source
from pipeline.methods.planning import known_types
from pipeline.params import LsrParams, PeftParams, TrainView
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.labels import Completion, Conversation
from pipeline.params.reading import changed
from pipeline.params.sections import HeadParams
from pipeline.params.sources import Split

PRIVATE = Path(".cache/arena/labels")
UNREAD = {"data", "model", "adapter", "tenants"}  # the first three only name what other fields of the view hold


class Setting(NamedTuple):
    """What tuning decides: factors of the learning rates in params.yaml."""

    factor: float = 1.0
    head_factor: float = 1.0


@dataclass(frozen=True)
class Training:
    """One training: a method on a task at two learning rates, with a seed."""

    preset: str  # its name
    task: str
    method: str
    seed: int
    view: TrainView
    reads: Reads
    rate: float | None
    head_rate: float
    key: str
    chosen: Method  # what the preset says of the method
    by_hash: tuple[Split, ...] = ()  # the splits to bring into the order of hashes before their first rows are read
    is_rounded: bool = False  # scored at all precisions, too
    is_tuned: bool = False  # at the setting that tuning decided

    @property
    def writes(self) -> bool:
        """Whether what a language model writes is scored."""
        return isinstance(self.view.dataset.label, Completion | Conversation)

    @property
    def is_alone(self) -> bool:
        """Whether the base model writes as it is: such a model has no head, and this is no method."""
        return self.writes and not self.chosen.trained and isinstance(self.view.section, HeadParams)


class Entry:
    """A method on a task: tuned independently, with a row in the tables."""

    def __init__(self, name: str, preset: Preset, task: str, method: str) -> None:
        self.name = name
        self.preset = preset
        self.task = task
        self.method = method
        self.title = f"{task}: {method}"  # in messages and for `--only`
        self.chosen = preset.methods[method]
        self.seeds = preset.seeds[: self.chosen.seeds]  # that the method is repeated with
        is_rounded = any(task in tasks for tasks in preset.means.values()) and not self.chosen.features
        self.rounded = preset.rounded if is_rounded else ()  # seeds whose tuned trainings are, in all precisions
        self._trainings: dict[tuple[Setting, int], Training] = {}

    def first(self) -> Training:
        """Return the training at the learning rates of params.yaml, with the first seed."""
        return self.training(Setting(), self.preset.seeds[0])

    @property
    def labels(self) -> Path:
        """The file of the labels of the test split, in the order of predictions; a user's own stay in the cache."""
        first = self.first()
        # Which text is expected is not written, only that it is right to write it.
        is_private = first.view.dataset.source.kind == "files" and not first.writes
        folder = PRIVATE / self.name if is_private else FOLDER / self.name / "labels"
        return folder / f"{self.task}.csv"

    @cached_property
    def rates(self) -> Sequence[str]:
        """The names of the method's learning rates in its section, the main one first; none if only a head is tuned."""
        return list(self._view.section.rates) if self.chosen.is_trained else []

    def training(self, setting: Setting, seed: int) -> Training:
        """Return the training with a setting and a seed."""
        known = self._trainings.get((setting, seed))
        if known is None:
            known = self._trainings[setting, seed] = self._training(setting, seed)
        return known

    def _training(self, setting: Setting, seed: int) -> Training:
        section = self._view.section
        train = self._view.train
        rates = {name: _times(getattr(section, name), setting.factor) for name in self.rates}
        # If only the head is trained, its rate is tuned in place of the adapter's.
        head_rate = _times(train.head_learning_rate, setting.head_factor if rates else setting.factor)
        changes = {
            "seed": seed,
            "section": section.model_copy(update=rates),
            "train": train.model_copy(update={"head_learning_rate": head_rate}),
        }
        view = self._view.model_copy(update=changes)
        reads = Reads.model_validate(self.preset.reads.model_dump() | self.preset.tasks[self.task].reads)
        by_hash = self._by_hash(reads)
        return Training(
            preset=self.name,
            task=self.task,
            method=self.method,
            seed=seed,
            view=view,
            reads=reads,
            rate=rates[self.rates[0]] if rates else None,
            head_rate=head_rate,
            key=key_of(view, reads, by_hash, self.preset.files, self.chosen),
            chosen=self.chosen,
            by_hash=by_hash,
        )

    def _by_hash(self, reads: Reads) -> tuple[Split, ...]:
        """Return the splits that must be brought into the order of hashes.

        Raises:
            UserError: if the preset keeps the order of a file where none would be changed.
        """
        in_order_of_source = sampled_in_order_of_source(self._view.dataset, reads)
        if self.preset.tasks[self.task].order == "hash":
            return in_order_of_source
        if not in_order_of_source:
            where = f"{PATH}: {self.name}.tasks.{self.task}.order: file"
            raise UserError(f"{where} changes nothing: the source provides no split of which a part is read; remove it")
        return ()

    @cached_property
    def _view(self) -> TrainView:
        """What the training sees before tuning."""
        method = self.chosen
        values = {**self.preset.params, **self.preset.tasks[self.task].params, **method.params}
        # A preset may set keys that only some methods have, and make sections that params.yaml does not have.
        of_methods = {method.adapter for method in self.preset.methods.values()}
        sections = params.load_params().sections.keys() | of_methods
        others = sections - {method.adapter}
        overrides = {
            **{key: value for key, value in values.items() if key.partition(".")[0] not in others},
            "train.processes": 1,  # workers share the machine instead
            "tenants.common": "trained",
            "adapter": method.adapter,
            "data": self.preset.row_of(self.task),
            "model": self.preset.model,
            "seed": self.preset.seeds[0],
        }
        view = changed(overrides, TrainView, PATH, (self.name, "methods", self.method))
        row = view.dataset
        kind = self.preset.tasks[self.task].kind
        source = row.source.model_copy(update={"kind": kind} if kind else {})
        return view.model_copy(update={"dataset": row.model_copy(update={"source": source})})


def entries(name: str, preset: Preset, only: Sequence[str] = ()) -> list[Entry]:
    """Return the entries of a preset whose titles contain all of `only`, by task; or the one of exactly this title.

    Raises:
        UserError: if there is none.
    """
    listed = [
        Entry(name, preset, task, method)
        for task in preset.tasks
        for method, chosen in preset.methods.items()
        if task in (chosen.tasks or preset.tasks)
    ]
    named = [entry for entry in listed if [entry.title] == list(only)]
    chosen = named or [entry for entry in listed if all(word in entry.title for word in only)]
    if chosen:
        return chosen
    words = " ".join(only)
    near = nearest(words, [entry.title for entry in listed])
    raise UserError(f"--only {words}: no entry has this in its title{near}; a title is TASK: METHOD")


def sampled_in_order_of_source(row: DatasetRow, reads: Reads) -> tuple[Split, ...]:
    """Return the splits of which a part is read, and which have the order of the source: it provides them.

    Splits that are cut from train, and pairs, are in the order of hashes.
    """
    if row.pairs:
        return ()
    provided: list[Split] = [split for split in ("validation", "test") if split in row.source.names]
    # Without a validation split, the checkpoint is chosen on test.
    if row.select_on == "test" and "test" in provided:
        provided.append("validation")
    return tuple(split for split in provided if getattr(reads, split) != "all")


def key_of(view: TrainView, reads: Reads, by_hash: Sequence[Split], pinned: Mapping[str, str], method: Method) -> str:
    """Return a hash of all inputs of a training, its values, rows and contents of files: 16 hexadecimal digits.

    `by_hash` names the splits that are brought into the order of hashes before their first rows are read. `pinned`
    holds the SHA-256 of files by path: these need not be there.

    Names of rows and sections are not hashed, and neither are values at their defaults, of our schema or of PEFT. So
    keys stay when an option comes, with what was done before as its default, or goes. Where a default changes, VERSION
    must.
    """
    section = view.section
    usual = _defaults_in_peft(section.type) if isinstance(section, PeftParams) else {}
    values = section.model_dump(mode="json", exclude_defaults=True)
    starts = [section.source] if isinstance(section, LsrParams) and section.source else []  # an adapter to go on from
    changes = {name: value for name, value in values.items() if name not in usual or value != usual[name]}
    known = {
        **view.model_dump(mode="json", exclude=UNREAD, exclude_defaults=True),
        "section": {"type": view.adapter} | changes,  # the sections without a type have fixed names
        "version": VERSION,
        "reads": reads.model_dump(mode="json"),
        "files": digests([view.dataset.source, view.base_model.source, *starts], pinned),
        **({"by_hash": sorted(by_hash)} if by_hash else {}),
        **({} if method.trained else {"trained": False}),
        **({"features": method.features} if method.features else {}),
        **({} if view.dataset.tenant is None else {"tenants": view.tenants.common}),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _defaults_in_peft(method: str) -> dict[str, Any]:
    config = known_types().get(method)
    return {field.name: field.default for field in fields(config)} if config else {}


def digests(sources: Iterable[Source], pinned: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return the SHA-256 of each local file, by relative name, for each file or folder that the sources name.

    Those of `pinned` files, by path, are taken as they are: the files may be elsewhere.
    """
    paths = [str(path) for source in sources for path in content.named(source)]
    return [{".": pinned[path]} if pinned and path in pinned else digests_of(path) for path in paths]


@cache  # files do not change meanwhile
def digests_of(path: str) -> dict[str, str]:
    """Return the SHA-256 of each file below a path, by its name relative to it.

    Raises:
        UserError: if nothing is there.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: not found; paths start at the root of the repository")
    return {file.relative_to(path).as_posix(): sha256(file) for file in content.files(Path(path))}


def _times(rate: float, factor: float) -> float:
    return min(1.0, float(f"{rate * factor:.6g}"))  # spurious digits would change the key; 1 is the maximum
