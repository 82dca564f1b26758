"""The precision in which an adapter is stored: the smallest that costs next to nothing on the validation split."""

from collections.abc import Sequence
from statistics import fmean

from pipeline.arena.record import Record, Rounded
from pipeline.compare.entries import Entry
from pipeline.compare.estimates import PERCENT
from pipeline.tasks.scores import ROUNDING

FULL, AS_TRAINED = "float32", "as trained"  # the second is all that is known of trainings that were not rounded
LOSS = 0.002  # of the validation score, a fraction


def smallest(entries: Sequence[Entry]) -> tuple[str, int, list[float]]:
    """Return the precision of a method's smallest file that loses at most LOSS, its bytes, and its score by seed.

    The loss is the mean over some tasks and the seeds that were rounded. Bytes are the most of these, because heads
    depend on the number of classes. Scores are percent, of those seeds that finished on all tasks. Where a task has no
    rounded files, everything is as it was trained.
    """
    if not all(entry.finished for entry in entries):
        return AS_TRAINED, max(entry.shown.file_bytes for entry in entries), []
    rounded = [[one for one in entry.finished if one.rounded] for entry in entries]
    chosen_trainings = rounded if all(rounded) else [entry.finished for entry in entries]
    by_seeds = [{one.seed: _files(one) for one in trainings} for trainings in chosen_trainings]
    every = [files for by_seed in by_seeds for files in by_seed.values()]
    validation = {
        name: fmean(fmean(files[name].validation for files in by_seed.values()) for by_seed in by_seeds)
        for name in every[0]
        if all(name in files for files in every)
    }
    least = validation.get(FULL, validation[AS_TRAINED]) - LOSS
    enough = [name for name, score in validation.items() if score > least - ROUNDING]
    sizes = {name: max(files[name].bytes for files in every) for name in enough}
    chosen = min(enough, key=lambda name: sizes[name])
    scores = [
        PERCENT
        * fmean(of[seed][chosen].test[entry.shown.metrics[0]] for of, entry in zip(by_seeds, entries, strict=True))
        for seed in sorted(set.intersection(*map(set, by_seeds)))
    ]
    return chosen, sizes[chosen], scores


def _files(one: Record) -> dict[str, Rounded]:
    whole = Rounded(bytes=one.file_bytes, validation=one.validation[one.selected], test=one.test[one.selected])
    return {**one.rounded, AS_TRAINED: whole}  # last, so that full precision goes before it
