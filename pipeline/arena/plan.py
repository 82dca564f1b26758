"""The trainings of a comparison: those that tune the learning rates of a method on a task, and then its seeds.

Every method has the same number of tries on every task: the rates of the preset, some beyond them as long as the best
one is at an end, and then rates of the head. Only the validation score decides.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline import params
from pipeline.arena import record
from pipeline.arena.files import digests
from pipeline.arena.preset import PATH, Preset, Reads
from pipeline.arena.record import Record
from pipeline.params.changed import changed

VERSION = 1  # to be raised when a change of code invalidates old records: all are then run again
HEAD = "train.head_learning_rate"
# Parameters added after the first records, by dotted key of a view, with the value that matches the former behavior: at
# this value the key of a training is unchanged.
LATER: Mapping[str, Any] = {}
# Keys of data rows and of the view that affect neither training nor scores.
OF_NO_ROW, OF_NO_VIEW = ("submission", "also"), ("train.report_to",)
Found = Mapping[str, Record]
TRIES, SEEDS = "tries", "seeds"  # purposes of trainings


class ArenaView(params.FactorizeInitView, params.TrainView):
    """All of params.yaml that a training and its adapter depend on."""


class Cell(NamedTuple):
    """One training: a method on a task at two learning rates, with a seed."""

    preset: str  # its name
    task: str
    method: str
    seed: int
    overrides: tuple[tuple[str, Any], ...]  # dotted keys of params.yaml, sorted
    reads: Reads
    key: str
    rate: float | None
    head_rate: float

    @property
    def name(self) -> str:
        """The name in messages and for `--only`."""
        return f"{self.task}: {self.method}"

    def view(self) -> ArenaView:
        """Return the values of params.yaml for this training."""
        return changed(dict(self.overrides), ArenaView, PATH, (self.preset, self.name))


@dataclass(frozen=True)
class Run:
    """A method on a task: tuned independently, with a row in the tables."""

    name: str  # of the preset
    preset: Preset
    task: str
    method: str
    _made: dict[tuple[float, float, int], Cell] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """The name in messages and for `--only`."""
        return f"{self.task}: {self.method}"

    def overrides(self) -> dict[str, Any]:
        """Return the overrides of params.yaml before tuning, with the first seed."""
        method = self.preset.methods[self.method]
        chosen = {**self.preset.params, **self.preset.tasks[self.task], **method.params}
        others = params.ADAPTERS.keys() - {method.adapter}  # a preset may set keys that only some methods have
        return {
            **{key: value for key, value in chosen.items() if key.partition(".")[0] not in others},
            "adapter": method.adapter,
            "data": self.task,
            "model": self.preset.model,
            "seed": self.preset.seeds[0],
        }

    def cell(self, factor: float, head_factor: float, seed: int) -> Cell:
        """Return the training with the learning rates of params.yaml multiplied by these factors.

        Raises:
            UserError: if the values are not allowed, or a file that a row names does not exist.
        """
        key = factor, head_factor, seed
        if key not in self._made:
            self._made[key] = self._cell(*key)
        return self._made[key]

    def _cell(self, factor: float, head_factor: float, seed: int) -> Cell:
        chosen = self.overrides() | {"seed": seed}
        place = (self.name, "methods", self.method)
        view = changed(chosen, ArenaView, PATH, place)
        own = rate_keys(view.adapter)
        for key in own:
            chosen[key] = _times(getattr(view.section, key.partition(".")[2]), factor)
        # If only the head is trained, its rate is tuned in place of the adapter's.
        chosen[HEAD] = _times(view.train.head_learning_rate, head_factor if own else factor)
        view = changed(chosen, ArenaView, PATH, place)
        rate = chosen[own[0]] if own else None
        reads = self.preset.reads
        shown = tuple(sorted(chosen.items()))
        return Cell(self.name, self.task, self.method, seed, shown, reads, key_of(view, reads), rate, chosen[HEAD])


def runs(name: str, preset: Preset, only: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a preset whose titles contain all of `only`, by task; or the one whose title it is exactly."""
    listed = [Run(name, preset, task, method) for task in preset.tasks for method in preset.methods]
    named = [run for run in listed if [run.title] == list(only)]
    return named or [run for run in listed if all(word in run.title for word in only)]


def missing(run: Run, found: Found) -> list[Cell]:
    """Return the next trainings of a run that have no record yet; none if the run is complete.

    A training that failed or diverged is not repeated.
    """
    steps = (cells for _, cells in _steps(run, found))
    return next((left for cells in steps if (left := [cell for cell in cells if cell.key not in found])), [])


def repeated(run: Run, found: Found) -> list[Cell]:
    """Return the trainings of all seeds at the tuned rates; none while tries are missing, or if none finished."""
    return next((cells for purpose, cells in _steps(run, found) if purpose == SEEDS), [])


def most(run: Run) -> int:
    """Return the largest possible number of trainings of a run."""
    tuning, has_rate = run.preset.tuning, bool(rate_keys(run.preset.methods[run.method].adapter))
    heads = len(set(tuning.head_rates) - {1.0}) if has_rate else 0
    return len(tuning.rates) + tuning.wider + heads + len(run.preset.seeds) - 1


def _steps(run: Run, found: Found) -> Iterator[tuple[str, list[Cell]]]:
    """Yield trainings that can run in parallel, step by step, until a step needs records that are missing."""
    tuning, (first, *_) = run.preset.tuning, run.preset.seeds
    tried = {factor: run.cell(factor, 1.0, first) for factor in sorted(tuning.rates)}
    yield TRIES, list(tried.values())
    for _ in range(tuning.wider):
        if not _are_known(tried, found) or (factor := _beyond(tried, found)) is None:
            break
        tried[factor] = run.cell(factor, 1.0, first)
        yield TRIES, [tried[factor]]
    if not _are_known(tried, found) or (best := _best(tried, found)) is None:
        return
    heads = {1.0: tried[best]}
    if tried[best].rate is not None:
        heads |= {factor: run.cell(best, factor, first) for factor in sorted({*tuning.head_rates} - {1.0})}
    yield TRIES, list(heads.values())
    if not _are_known(heads, found):
        return
    head = _best(heads, found)
    assert head is not None, "the one of factor 1 has finished"
    yield SEEDS, [run.cell(best, head, seed) for seed in run.preset.seeds]


def _are_known(tried: Mapping[float, Cell], found: Found) -> bool:
    return all(cell.key in found for cell in tried.values())


def _best(tried: Mapping[float, Cell], found: Found) -> float | None:
    """Return the factor with the best validation score, the first if several; None if no training finished."""
    records = {factor: found[cell.key] for factor, cell in tried.items()}
    chosen = record.best(records)
    return next((factor for factor, one in records.items() if one is chosen), None)


def _beyond(tried: Mapping[float, Cell], found: Found) -> float | None:
    """Return the factor one step beyond the end at which the best one is, or below all if none finished."""
    factors, best = sorted(tried), _best(tried, found)
    step = factors[1] / factors[0] if len(factors) > 1 else 2.0
    if best is None or best == factors[0]:
        return factors[0] / step
    return factors[-1] * factors[-1] / factors[-2] if best == factors[-1] else None


def rate_keys(adapter: str) -> list[str]:
    """Return the dotted keys of a method's learning rates, the main one first; none if only the head is trained."""
    names = [name for name in params.ADAPTERS[adapter].model_fields if name.endswith("learning_rate")]
    return [f"{adapter}.{name}" for name in sorted(names, key=len)]


def key_of(view: ArenaView, reads: Reads) -> str:
    """Return a hash of all inputs of a training, its values, rows and contents of files: 16 hexadecimal digits.

    Raises:
        UserError: if a file that a row names does not exist.
    """
    known = view.model_dump(mode="json")
    for row in (known["dataset"], *known["pooled"].values()):
        for name in OF_NO_ROW:
            row.pop(name, None)
    for key in (*OF_NO_VIEW, *LATER):
        section, _, name = key.rpartition(".")
        inner = known[section] if section else known
        if name in inner and (key in OF_NO_VIEW or inner[name] == LATER[key]):
            del inner[name]
    sources = [view.dataset.source, *(row.source for row in view.pooled.values()), view.base_model.source]
    frames = getattr(view.section, "frames", "own")
    known |= {"version": VERSION, "reads": reads.model_dump(mode="json"), "files": digests([*sources, frames])}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _times(rate: float, factor: float) -> float:
    return min(1.0, float(f"{rate * factor:.6g}"))  # spurious digits would change the key; 1 is the maximum
