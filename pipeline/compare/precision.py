"""The precision in which an adapter is stored: the smallest that costs next to nothing on the validation split."""

from collections.abc import Sequence
from statistics import fmean

from pipeline.arena.record import Record, Rounded
from pipeline.compare.cells import Cell
from pipeline.compare.estimates import PERCENT
from pipeline.evaluation.scores import ROUNDING

FULL, AS_TRAINED = "float32", "as trained"  # the second is all that is known of records without rounded files
LOSS = 0.002  # of the validation score, a fraction


def smallest(cells: Sequence[Cell]) -> tuple[str, int, list[float]]:
    """Return the precision of a method's smallest file that loses at most LOSS, its bytes, and its score by seed.

    The loss is the mean over some tasks and the seeds that were rounded. Bytes are the most of these, because heads
    depend on the number of classes. Scores are percent, of those seeds that finished on all tasks. Where a task has no
    rounded files, everything is as it was trained.
    """
    if not all(cell.finished for cell in cells):
        return AS_TRAINED, max(cell.shown.file_bytes for cell in cells), []
    rounded = [[run for run in cell.finished if run.rounded] for cell in cells]
    chosen_runs = rounded if all(rounded) else [cell.finished for cell in cells]
    runs = [{run.seed: _files(run) for run in by_task} for by_task in chosen_runs]
    every = [files for by_seed in runs for files in by_seed.values()]
    validation = {
        name: fmean(fmean(files[name].validation for files in by_seed.values()) for by_seed in runs)
        for name in every[0]
        if all(name in files for files in every)
    }
    least = validation.get(FULL, validation[AS_TRAINED]) - LOSS
    enough = [name for name, score in validation.items() if score > least - ROUNDING]
    sizes = {name: max(files[name].bytes for files in every) for name in enough}
    chosen = min(enough, key=lambda name: sizes[name])
    scores = [
        PERCENT * fmean(of[seed][chosen].test[cell.shown.metrics[0]] for of, cell in zip(runs, cells, strict=True))
        for seed in sorted(set.intersection(*map(set, runs)))
    ]
    return chosen, sizes[chosen], scores


def _files(run: Record) -> dict[str, Rounded]:
    whole = Rounded(bytes=run.file_bytes, validation=run.validation[run.selected], test=run.test[run.selected])
    return {**run.rounded, AS_TRAINED: whole}  # last, so that full precision goes before it
