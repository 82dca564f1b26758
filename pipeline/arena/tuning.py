"""Which trainings of an entry come next: those that tune it, and then its seeds at the best setting.

Every method has the same number of tries on every task: the rates of the preset, some beyond them as long as the best
one is at an end, and then rates of the head. Only the validation score decides: that of the first seed, and of the
best, that of as many seeds as the preset says.
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import inf
from statistics import fmean

from pipeline.arena.plan import Entry, Setting, Training
from pipeline.arena.record import Record

Records = Mapping[str, Record]  # records by key
Steps = Generator[list[Training], None, Setting | None]  # yield training runs to do next, and return a setting


def missing(entry: Entry, records: Records) -> list[Training]:
    """Return the next trainings of an entry that have no record yet; none if it is complete.

    A training that failed or diverged is not repeated.
    """
    for trainings in steps(entry, records):
        left = []
        for training in trainings:
            if not _is_known(training, records):
                left.append(training)
        if left:
            return left
    return []


def _is_known(training: Training, records: Records) -> bool:
    """Return whether a training run has a record, with scores in all precisions if it is to have them."""
    known = records.get(training.key)
    if known is None:
        return False
    lacks_precisions = training.is_quantized and not known.quantized
    return not lacks_precisions or known.status != "finished"


def most_left(entry: Entry, records: Records) -> int:
    """Return how many trainings an entry lacks, at most, unless the best try is not the best with a further seed."""
    tuning = entry.preset.tuning
    most = len(entry.seeds)
    if entry.chosen.is_trained:
        most += len(tuning.rates) + tuning.extra_rates + len(_head_multipliers(entry)) - 1
    trainings = chain.from_iterable(steps(entry, records))
    known = {training.key for training in trainings if _is_known(training, records)}
    next_step = missing(entry, records)
    return max(most - len(known), len(next_step))


def _head_multipliers(entry: Entry) -> list[float]:
    """Return the factors of the head's learning rate to try at the best rate, besides 1, with which that was found."""
    multipliers = set(entry.preset.tuning.head_rates) if entry.rates else set()
    return sorted(multipliers - {1.0})


def steps(entry: Entry, records: Records) -> Iterator[list[Training]]:
    """Yield trainings that can run in parallel, step by step, until a step needs records that are missing.

    The last step of an entry that finished is its seeds at the tuned setting.
    """
    for trainings in _all_steps(entry, records):
        yield trainings
        if any(training.key not in records for training in trainings):
            return


def _all_steps(entry: Entry, records: Records) -> Iterator[list[Training]]:
    """Yield all steps; whoever asks for the next one has the records of those before it."""
    tuned: Setting | None = Setting()
    if entry.chosen.is_trained:
        tuned = yield from _tries(entry, records)
    if tuned is None:
        return
    trainings = []
    for seed in entry.seeds:
        training = entry.training(tuned, seed)
        is_quantized = seed in entry.quantized_seeds
        trainings.append(replace(training, is_quantized=is_quantized, is_tuned=True))
    yield trainings


def _tries(entry: Entry, records: Records) -> Steps:
    """Yield the trainings that tune an entry; return the best setting, or None if no training finished."""
    tuning = entry.preset.tuning
    first = entry.seeds[0]
    tried = [Setting(multiplier) for multiplier in sorted(tuning.rates)]
    yield [entry.training(setting, first) for setting in tried]
    for _ in range(tuning.extra_rates):
        further = _beyond(entry, tried, records)
        if further is None:
            break
        tried.append(further)
        yield [entry.training(further, first)]
    best = yield from _confirm_best(entry, tried, records, set())
    if best is None:
        return None
    heads = [best._replace(head_multiplier=multiplier) for multiplier in _head_multipliers(entry)]
    yield [entry.training(setting, first) for setting in heads]
    best = yield from _confirm_best(entry, [best, *heads], records, {best})
    return best


def _confirm_best(
    entry: Entry,
    tried: Sequence[Setting],
    records: Records,
    tested: set[Setting],
) -> Steps:
    """Yield further seeds of the best setting until the best is one that is `tested` with them; return it."""
    best = _best(entry, tried, records, tested)
    while best is not None and best not in tested:
        tested = {*tested, best}
        trainings = []
        for seed in entry.seeds[: entry.preset.tuning.seeds]:
            training = entry.training(best, seed)
            # Rounded at once where it is new, for it is one of the tuned training runs if this setting stays the best.
            is_quantized = seed in entry.quantized_seeds and training.key not in records
            trainings.append(replace(training, is_quantized=is_quantized))
        yield trainings
        best = _best(entry, tried, records, tested)
    return best


def _best(
    entry: Entry,
    tried: Sequence[Setting],
    records: Records,
    tested: Collection[Setting] = (),
) -> Setting | None:
    """Return the setting with the best validation score, the first if several; None if no training finished.

    It is that of the first seed, of a tested setting the mean over the seeds of tuning: so the steps are the same when
    they are asked for again. The test score is not considered.
    """
    scores = {}
    for setting in tried:
        count = entry.preset.tuning.seeds if setting in tested else 1
        trainings = [entry.training(setting, seed) for seed in entry.seeds[:count]]
        scores[setting] = fmean(records[training.key].held_out for training in trainings)
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > -inf else None


def _beyond(
    entry: Entry,
    tried: Sequence[Setting],
    records: Records,
) -> Setting | None:
    """Return the setting one step beyond the end at which the best one is, or below all if none finished."""
    best = _best(entry, tried, records)
    multipliers = sorted(setting.multiplier for setting in tried)
    if len(multipliers) == 1:
        return Setting(multipliers[0] / 2)
    lowest, second, *_ = multipliers
    *_, last_but_one, highest = multipliers
    if best is None or best.multiplier == lowest:
        return Setting(lowest / (second / lowest))
    if best.multiplier == highest:
        return Setting(highest * highest / last_but_one)
    return None
