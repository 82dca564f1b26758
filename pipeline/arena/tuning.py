"""Choose the next training runs of a cell: tuning trials first, then all seeds at the best setting.

Every method has the same number of trials on every task: the preset's learning rates, some beyond them while the best
is at an edge, then numbers of epochs, and then rates of the head. Only the validation score decides: with the first
seed, and for the best setting with the preset's number of seeds.
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import inf
from statistics import fmean

from pipeline.arena.plan import Cell, Multipliers, TrainingRun
from pipeline.arena.record import Record

Records = Mapping[str, Record]  # records by key
Steps = Generator[list[TrainingRun], None, Multipliers | None]  # yield training runs to do next, and return a setting


def missing(cell: Cell, records: Records) -> list[TrainingRun]:
    """Return the next training runs of a cell that have no record yet; empty if it is complete.

    A training run that failed or diverged is not repeated.
    """
    for trainings in steps(cell, records):
        left = []
        for training in trainings:
            if not _is_known(training, records):
                left.append(training)
        if left:
            return left
    return []


def _is_known(training: TrainingRun, records: Records) -> bool:
    """Return whether a training run has a record, including scores in all precisions if they are wanted."""
    known = records.get(training.key)
    if known is None:
        return False
    lacks_precisions = training.is_quantized and not known.quantized
    return not lacks_precisions or known.status != "finished"


def most_left(cell: Cell, records: Records) -> int:
    """Return an upper bound of the missing training runs, unless the best trial changes with further seeds."""
    tuning = cell.preset.tuning
    most = len(cell.seeds)
    if cell.chosen.is_trained:
        most += len(tuning.rates) + tuning.extra_rates - 1
        most += len(_epochs_multipliers(cell)) + len(_head_multipliers(cell))
    trainings = chain.from_iterable(steps(cell, records))
    known = {training.key for training in trainings if _is_known(training, records)}
    next_step = missing(cell, records)
    return max(most - len(known), len(next_step))


def _epochs_multipliers(cell: Cell) -> list[float]:
    """Return the factors of the number of epochs to try at the best rate, besides 1, which tuning used."""
    return sorted({*cell.preset.tuning.epochs} - {1.0})


def _head_multipliers(cell: Cell) -> list[float]:
    """Return the factors of the head's learning rate to try at the best rate, besides 1, which tuning used."""
    multipliers = set(cell.preset.tuning.head_rates) if cell.rates else set()
    return sorted(multipliers - {1.0})


def steps(cell: Cell, records: Records) -> Iterator[list[TrainingRun]]:
    """Yield training runs that can run in parallel, step by step, until a step needs missing records.

    The last step has all seeds at the tuned setting.
    """
    for trainings in _all_steps(cell, records):
        yield trainings
        if any(training.key not in records for training in trainings):
            return


def _all_steps(cell: Cell, records: Records) -> Iterator[list[TrainingRun]]:
    """Yield all steps; each needs the records of the steps before it."""
    tuned: Multipliers | None = Multipliers()
    if cell.chosen.is_trained:
        tuned = yield from _tries(cell, records)
    if tuned is None:
        return
    trainings = []
    for seed in cell.seeds:
        training = cell.training(tuned, seed)
        is_quantized = seed in cell.quantized_seeds
        trainings.append(replace(training, is_quantized=is_quantized, is_tuned=True))
    yield trainings


def _tries(cell: Cell, records: Records) -> Steps:
    """Yield the tuning trials of a cell; return the best setting, or None if no trial finished."""
    tuning = cell.preset.tuning
    first = cell.seeds[0]
    tried = [Multipliers(multiplier) for multiplier in sorted(tuning.rates)]
    yield [cell.training(setting, first) for setting in tried]
    for _ in range(tuning.extra_rates):
        further = _beyond(cell, tried, records)
        if further is None:
            break
        tried.append(further)
        yield [cell.training(further, first)]
    best = yield from _confirm_best(cell, tried, records, set())
    further_multipliers = {
        "epochs_multiplier": _epochs_multipliers(cell),
        "head_multiplier": _head_multipliers(cell),
    }
    for field, multipliers in further_multipliers.items():
        if best is None:
            break
        others = [best._replace(**{field: multiplier}) for multiplier in multipliers]
        yield [cell.training(setting, first) for setting in others]
        best = yield from _confirm_best(cell, [best, *others], records, {best})
    return best


def _confirm_best(
    cell: Cell,
    tried: Sequence[Multipliers],
    records: Records,
    tested: set[Multipliers],
) -> Steps:
    """Yield further seeds of the best setting until the best one is `tested`, and return it."""
    best = _best(cell, tried, records, tested)
    while best is not None and best not in tested:
        tested = {*tested, best}
        trainings = []
        for seed in cell.seeds[: cell.preset.tuning.seeds]:
            training = cell.training(best, seed)
            # Rounded at once where it is new, for it is one of the tuned training runs if this setting stays the best.
            is_quantized = seed in cell.quantized_seeds and training.key not in records
            trainings.append(replace(training, is_quantized=is_quantized))
        yield trainings
        best = _best(cell, tried, records, tested)
    return best


def _best(
    cell: Cell,
    tried: Sequence[Multipliers],
    records: Records,
    tested: Collection[Multipliers] = (),
) -> Multipliers | None:
    """Return the setting with the best validation score (the first of ties); None if no trial finished.

    The score is the first seed's, or for a tested setting the mean over the tuning seeds, so that repeated calls give
    the same steps. Test scores are not considered.
    """
    scores = {}
    for setting in tried:
        count = cell.preset.tuning.seeds if setting in tested else 1
        trainings = [cell.training(setting, seed) for seed in cell.seeds[:count]]
        scores[setting] = fmean(records[training.key].held_out for training in trainings)
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > -inf else None


def _beyond(
    cell: Cell,
    tried: Sequence[Multipliers],
    records: Records,
) -> Multipliers | None:
    """If the best setting is at an edge of the grid, return the next one beyond it; below the grid if none finished."""
    best = _best(cell, tried, records)
    multipliers = sorted(setting.multiplier for setting in tried)
    if len(multipliers) == 1:
        return Multipliers(multipliers[0] / 2)
    lowest, second, *_ = multipliers
    *_, last_but_one, highest = multipliers
    if best is None or best.multiplier == lowest:
        return Multipliers(lowest / (second / lowest))
    if best.multiplier == highest:
        return Multipliers(highest * highest / last_but_one)
    return None
