"""Which trainings of a run come next: those that tune it, and then its seeds at the best setting.

Every method has the same number of tries on every task: the rates of the preset, some beyond them as long as the best
one is at an end, and then rates of the head. Only the validation score decides: that of the first seed, and of the
best, that of as many seeds as the preset says.
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import fmean

from pipeline.arena.plan import Cell, Run, Setting
from pipeline.arena.record import Record

Records = Mapping[str, Record]  # by key


def missing(run: Run, records: Records) -> list[Cell]:
    """Return the next trainings of a run that have no record yet; none if the run is complete.

    A training that failed or diverged is not repeated.
    """
    for cells in steps(run, records):
        if left := [cell for cell in cells if not _is_known(cell, records)]:
            return left
    return []


def _is_known(cell: Cell, records: Records) -> bool:
    known = records.get(cell.key)
    return known is not None and bool(known.rounded or not cell.is_rounded or known.status != "finished")


def most_left(run: Run, records: Records) -> int:
    """Return how many trainings a run lacks, at most, unless the best try is not the best with a further seed."""
    tuning = run.preset.tuning
    heads = len(set(tuning.head_rates) - {1.0}) if run.has_rate else 0
    tries = len(tuning.rates) + tuning.wider + heads - 1 if run.chosen.trained else 0
    known = {cell.key for cells in steps(run, records) for cell in cells if _is_known(cell, records)}
    return max(tries + len(run.seeds) - len(known), len(missing(run, records)))


def steps(run: Run, records: Records) -> Iterator[list[Cell]]:
    """Yield trainings that can run in parallel, step by step, until a step needs records that are missing.

    The last step of a run that finished is its seeds at the tuned setting.
    """
    tuned = (yield from _tries(run, records)) if run.chosen.trained else Setting()
    if tuned is not None:
        yield [replace(run.cell(tuned, seed), is_rounded=seed in run.rounded) for seed in run.seeds]


def _tries(run: Run, records: Records) -> Generator[list[Cell], None, Setting | None]:
    """Yield the trainings that tune a run; return the best setting, or None if it is not known yet."""
    tuning, first = run.preset.tuning, run.seeds[0]
    tried = [Setting(factor) for factor in sorted(tuning.rates)]
    yield [run.cell(setting, first) for setting in tried]
    for _ in range(tuning.wider):
        if (further := _beyond(run, tried, records)) is None:
            break
        tried.append(further)
        yield [run.cell(further, first)]
    best = yield from _settled(run, tried, records, set())
    if best is None or not run.has_rate:
        return best
    heads = [best._replace(head_factor=factor) for factor in sorted({*tuning.head_rates} - {1.0})]
    yield [run.cell(setting, first) for setting in heads]
    return (yield from _settled(run, [best, *heads], records, {best}))


def _settled(
    run: Run, tried: Sequence[Setting], records: Records, tested: set[Setting]
) -> Generator[list[Cell], None, Setting | None]:
    """Yield further seeds of the best setting until the best is one that is `tested` with them; return it."""
    while (best := _best(run, tried, records, tested)) is not None and best not in tested:
        tested = {*tested, best}
        cells = [run.cell(best, seed) for seed in run.seeds[: run.preset.tuning.seeds]]
        # Rounded at once where it is new, for it is one of the tuned trainings if this setting stays the best.
        yield [replace(one, is_rounded=one.seed in run.rounded and one.key not in records) for one in cells]
    return best


def _best(run: Run, tried: Sequence[Setting], records: Records, tested: Collection[Setting] = ()) -> Setting | None:
    """Return the setting with the best validation score, the first if several.

    It is that of the first seed, of a tested setting the mean over the seeds of tuning: so the steps are the same when
    they are asked for again. It is None while one is missing, or if no training finished. The test score is not
    considered.
    """
    scores: dict[Setting, float] = {}
    for setting in tried:
        seeds = run.seeds[: run.preset.tuning.seeds if setting in tested else 1]
        cells = [run.cell(setting, seed) for seed in seeds]
        if any(cell.key not in records for cell in cells):
            return None
        scores[setting] = fmean(records[cell.key].held_out for cell in cells)
    best = max(scores, key=lambda setting: scores[setting])
    return best if scores[best] > -inf else None


def _beyond(run: Run, tried: Sequence[Setting], records: Records) -> Setting | None:
    """Return the setting one step beyond the end at which the best one is, or below all if none finished."""
    if any(run.cell(setting, run.seeds[0]).key not in records for setting in tried):
        return None
    best = _best(run, tried, records)
    factors = sorted(setting.factor for setting in tried)
    if best is None or best.factor == factors[0]:
        step = factors[1] / factors[0] if len(factors) > 1 else 2.0
        return Setting(factors[0] / step)
    return Setting(factors[-1] * factors[-1] / factors[-2]) if best.factor == factors[-1] else None
