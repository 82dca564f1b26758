"""The trainings of a comparison: those that tune a method on a task, and then its seeds.

Every method has the same number of tries on every task: the rates of the preset, some beyond them as long as the best
one is at an end, and then rates of the head. A method with choices, such as the layers to adapt, tries each of them at
all rates. Only the validation score decides.
"""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

from pipeline import params
from pipeline.arena import record
from pipeline.arena.files import digests
from pipeline.arena.preset import PATH, Preset, Reads
from pipeline.arena.record import RATE, Record
from pipeline.methods.table import known_types
from pipeline.params import PeftParams
from pipeline.params.changed import changed

VERSION = 1  # to be raised when a change of code invalidates old records: all are then run again
HEAD = f"train.head_{RATE}"
NAMES = {"data", "model", "adapter"}  # fields of the view that only name what other fields hold
Records = Mapping[str, Record]  # by key
TRIES, SEEDS = "tries", "seeds"  # purposes of trainings


class ArenaView(params.FactorizeInitView, params.TrainView):
    """All of params.yaml that a training and its adapter depend on."""


class Setting(NamedTuple):
    """What tuning decides: the number of a choice, and factors of the learning rates in params.yaml."""

    choice: int = 0
    factor: float = 1.0
    head_factor: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One training: a method on a task at two learning rates, with a seed."""

    preset: str  # its name
    task: str
    method: str
    seed: int
    view: ArenaView
    overrides: dict[str, Any]  # of params.yaml, by dotted key: what makes the view
    choice: dict[str, Any]  # those of them that are one of the method's choices
    reads: dict[str, Reads]  # by row of data: the task's, and those that the frames are from
    rate: float | None
    head_rate: float
    key: str


@dataclass(frozen=True)
class Run:
    """A method on a task: tuned independently, with a row in the tables."""

    name: str  # of the preset
    preset: Preset
    task: str
    method: str
    _views: dict[int, tuple[dict[str, Any], ArenaView]] = field(default_factory=dict, repr=False, compare=False)
    _cells: dict[tuple[Setting, int], Cell] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """The name in messages and for `--only`."""
        return f"{self.task}: {self.method}"

    @property
    def choices(self) -> Sequence[dict[str, Any]]:
        """The choices of the method, of which tuning takes one; an empty one if it has none."""
        return self.preset.methods[self.method].choices or ({},)

    @cached_property
    def tuned_by(self) -> "Run":
        """The run whose tries decide: this one, or that of the method that it is like."""
        like = self.preset.methods[self.method].like
        return self if like is None else Run(self.name, self.preset, self.task, like)

    def cell(self, setting: Setting, seed: int) -> Cell:
        """Return the training with a setting and a seed.

        Raises:
            UserError: if the values are not allowed, or a file that a row names does not exist.
        """
        if (setting, seed) not in self._cells:
            self._cells[setting, seed] = self._cell(setting, seed)
        return self._cells[setting, seed]

    def first(self) -> Cell:
        """Return the training at the learning rates of params.yaml, with the first seed."""
        return self.cell(Setting(), self.preset.seeds[0])

    def rate_keys(self) -> list[str]:
        """Return the names of the method's learning rates in its section, the main one first; none for the head."""
        return list(self._view(0)[1].section.rates)

    def _cell(self, setting: Setting, seed: int) -> Cell:
        overrides, view = self._view(setting.choice)
        own = self.rate_keys()
        rates = {name: _times(getattr(view.section, name), setting.factor) for name in own}
        # If only the head is trained, its rate is tuned in place of the adapter's.
        head_rate = _times(view.train.head_learning_rate, setting.head_factor if own else setting.factor)
        view = view.model_copy(
            update={
                "seed": seed,
                "section": view.section.model_copy(update=rates),
                "train": view.train.model_copy(update={HEAD.partition(".")[2]: head_rate}),
            }
        )
        tuned = {**{f"{view.adapter}.{name}": rate for name, rate in rates.items()}, HEAD: head_rate, "seed": seed}
        reads = {name: self.preset.reads_of(name) for name in (self.task, *view.pooled)}
        return Cell(
            preset=self.name,
            task=self.task,
            method=self.method,
            seed=seed,
            view=view,
            overrides=dict(sorted((overrides | tuned).items())),
            choice=self.choices[setting.choice],
            reads=reads,
            rate=rates[own[0]] if own else None,
            head_rate=head_rate,
            key=key_of(view, reads),
        )

    def _view(self, choice: int) -> tuple[dict[str, Any], ArenaView]:
        """Return the overrides of params.yaml before tuning, and the view that they make."""
        if choice not in self._views:
            overrides = self._overrides(self.choices[choice])
            self._views[choice] = overrides, changed(overrides, ArenaView, PATH, (self.name, "methods", self.method))
        return self._views[choice]

    def _overrides(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        method = self.preset.methods[self.method]
        chosen = {**self.preset.params, **self.preset.tasks[self.task].params, **method.params, **choice}
        others = params.load_params().sections.keys() - {
            method.adapter
        }  # a preset may set keys that only some methods have
        return {
            **{key: value for key, value in chosen.items() if key.partition(".")[0] not in others},
            **({"lsr.frames_from": self._frames_from()} if method.frames_from != "own" else {}),
            "adapter": method.adapter,
            "data": self.task,
            "model": self.preset.model,
            "seed": self.preset.seeds[0],
        }

    def _frames_from(self) -> list[str]:
        """Return the tasks that the frames are from: all, those of other sources, or a named one."""
        chosen = self.preset.methods[self.method].frames_from
        if chosen not in ("all", "others"):
            return [chosen]
        sources = {task: params.load_row("data", task).source for task in self.preset.tasks}
        return [task for task, source in sources.items() if chosen == "all" or source != sources[self.task]]


def runs(name: str, preset: Preset, only: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a preset whose titles contain all of `only`, by task; or the one whose title it is exactly.

    Frames from another task are not tried on that task itself.
    """
    pairs = [(task, method) for task in preset.tasks for method in preset.methods]
    listed = [Run(name, preset, *pair) for pair in pairs if preset.methods[pair[1]].frames_from != pair[0]]
    named = [run for run in listed if [run.title] == list(only)]
    return named or [run for run in listed if all(word in run.title for word in only)]


def missing(run: Run, records: Records) -> list[Cell]:
    """Return the next trainings of a run that have no record yet; none if the run is complete.

    A training that failed or diverged is not repeated.
    """
    listed = (cells for _, cells in steps(run, records))
    return next((left for cells in listed if (left := [cell for cell in cells if cell.key not in records])), [])


def repeated(run: Run, records: Records) -> list[Cell]:
    """Return the trainings of all seeds with the tuned setting; none while tries are missing, or if none finished."""
    return next((cells for purpose, cells in steps(run, records) if purpose == SEEDS), [])


def most(run: Run) -> int:
    """Return the largest possible number of trainings of a run."""
    tuning, has_rate = run.preset.tuning, bool(run.rate_keys())
    heads = len(set(tuning.head_rates) - {1.0}) if has_rate else 0
    return len(run.choices) * len(tuning.rates) + tuning.wider + heads + len(run.preset.seeds) - 1


def steps(run: Run, records: Records) -> Iterator[tuple[str, list[Cell]]]:
    """Yield trainings that can run in parallel, step by step, until a step needs records that are missing."""
    tuned = yield from _tries(run.tuned_by, records)
    if tuned is not None:
        yield SEEDS, [run.cell(tuned, seed) for seed in run.preset.seeds]


def _tries(run: Run, records: Records) -> Generator[tuple[str, list[Cell]], None, Setting | None]:
    """Yield the trainings that tune a run; return the best setting, or None if it is not known yet."""
    tuning, (first, *_) = run.preset.tuning, run.preset.seeds
    grid = [Setting(choice, factor) for choice in range(len(run.choices)) for factor in sorted(tuning.rates)]
    tried = {setting: run.cell(setting, first) for setting in grid}
    yield TRIES, list(tried.values())
    for _ in range(tuning.wider):
        if not _are_known(tried, records) or (further := _beyond(tried, records)) is None:
            break
        tried[further] = run.cell(further, first)
        yield TRIES, [tried[further]]
    if not _are_known(tried, records) or (best := _best(tried, records)) is None:
        return None
    heads = {best: tried[best]}
    if tried[best].rate is not None:
        settings = [best._replace(head_factor=factor) for factor in sorted({*tuning.head_rates} - {1.0})]
        heads |= {setting: run.cell(setting, first) for setting in settings}
    yield TRIES, list(heads.values())
    return _best(heads, records) if _are_known(heads, records) else None


def _are_known(tried: Mapping[Setting, Cell], records: Records) -> bool:
    return all(cell.key in records for cell in tried.values())


def _best(tried: Mapping[Setting, Cell], records: Records) -> Setting | None:
    """Return the setting with the best validation score, the first if several; None if no training finished."""
    known = {setting: records[cell.key] for setting, cell in tried.items()}
    best = record.best(known)
    return next((setting for setting, one in known.items() if one is best), None)


def _beyond(tried: Mapping[Setting, Cell], records: Records) -> Setting | None:
    """Return the setting one step beyond the end at which the best one is, or below all if none finished."""
    best = _best(tried, records)
    choice = 0 if best is None else best.choice
    factors = sorted(setting.factor for setting in tried if setting.choice == choice)
    if best is None or best.factor == factors[0]:
        step = factors[1] / factors[0] if len(factors) > 1 else 2.0
        return Setting(choice, factors[0] / step)
    return Setting(choice, factors[-1] * factors[-1] / factors[-2]) if best.factor == factors[-1] else None


def key_of(view: ArenaView, reads: Mapping[str, Reads]) -> str:
    """Return a hash of all inputs of a training, its values, rows and contents of files: 16 hexadecimal digits.

    Names of rows and sections are not hashed, and neither are values at their defaults, of our schema or of PEFT. So
    keys stay when an option comes, with what was done before as its default, or goes. Where a default changes, VERSION
    must.

    Raises:
        UserError: if a file that a row names does not exist.
    """
    sources = [view.dataset.source, *(row.source for row in view.pooled.values()), view.base_model.source]
    known = {
        **view.model_dump(mode="json", exclude=NAMES, exclude_defaults=True),
        "section": _changed_values(view),
        "version": VERSION,
        "reads": [one.model_dump(mode="json") for one in reads.values()],
        "files": digests([*sources, getattr(view.section, "frames", "own")]),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _changed_values(view: ArenaView) -> dict[str, Any]:
    """Return the type of a section, and its values that are no defaults."""
    section = view.section
    usual = _defaults_in_peft(section.type) if isinstance(section, PeftParams) else {}
    values = section.model_dump(mode="json", exclude_defaults=True)
    kept = {name: value for name, value in values.items() if name not in usual or value != usual[name]}
    return {"type": view.adapter} | kept  # the sections without a type have fixed names


@cache
def _defaults_in_peft(method: str) -> dict[str, Any]:
    config = known_types().get(method)
    return {one.name: one.default for one in fields(config)} if config else {}


def _times(rate: float, factor: float) -> float:
    return min(1.0, float(f"{rate * factor:.6g}"))  # spurious digits would change the key; 1 is the maximum
