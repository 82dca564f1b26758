"""The cells of the comparison: those that tune the learning rate of a run, and its layers if there is a choice; seeds.

Every method has the same number of tries per choice of layers: the grid, and one more rate if the best is at its edge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.family.experiment import DATA, SEEDS, Cell, Run, beyond
from benchmarks.family.measure import Line
from benchmarks.family.methods import METHODS, of_protocol

Found = Mapping[str, Line]  # by the keys of their cells


def runs(protocol: str, only: Sequence[str] = ("",)) -> list[Run]:
    """Return the runs of a protocol, by data set, that have one of `only` as their name or, if none has, in it."""
    listed = [Run(protocol, data, method) for data in DATA for method in of_protocol(protocol)]
    listed = [run for run in listed if METHODS[run.method].pool != run.data]
    chosen = {run for text in only for run in _named(listed, text)}
    return [run for run in listed if run in chosen]


def _named(listed: Sequence[Run], text: str) -> list[Run]:
    exact = [run for run in listed if run.name == text]
    return exact or [run for run in listed if text in run.name]


def grid(run: Run) -> list[Cell]:
    """Return the cells that tune a run, with the first seed; none if it uses the rate of another run."""
    if METHODS[run.method].like:
        return []
    return [Cell(run, place, rate, SEEDS[0]) for place in METHODS[run.method].places for rate in run.rates()]


def wider(run: Run, found: Found) -> list[Cell]:
    """Return the cell beyond the grid, in the layers of the best cell, if that is at an edge; otherwise none."""
    best = _best(grid(run), found)
    further = None if best is None else beyond(best.rate, run.rates())
    return [] if best is None or further is None else [best._replace(rate=further)]


def tuned(run: Run, found: Found) -> Cell | None:
    """Return the cell with the best validation score, the first if several; None if cells are missing.

    The test score is not considered.
    """
    if like := METHODS[run.method].like:
        other = tuned(run._replace(method=like), found)
        return other and other._replace(run=run)
    return _best([*grid(run), *wider(run, found)], found)


def is_at_edge(cell: Cell) -> bool:
    """Return whether a tuned cell has the lowest or highest rate tried, so that one beyond may be better."""
    return cell.rate not in cell.run.rates()


def seeds(run: Run, found: Found) -> list[Cell]:
    """Return the cells of all seeds with the tuned values; none before tuning is complete."""
    best = tuned(run, found)
    return [] if best is None else [best._replace(seed=seed) for seed in SEEDS]


def batches(protocol: str, only: Sequence[str], found: Found) -> Iterator[list[Cell]]:
    """Yield the missing cells of a protocol, for each data set: the grids, the cells beyond them, and the seeds.

    `found` must contain the lines of one batch before the next batch is requested.
    """
    for data in DATA:
        chosen = [run for run in runs(protocol, only) if run.data == data]
        yield _missing((cell for run in chosen for cell in grid(run)), found)
        yield _missing((cell for run in chosen for cell in wider(run, found)), found)
        # Sorted by seed, because cells with the same seed share gradients.
        yield _missing(sorted((c for run in chosen for c in seeds(run, found)), key=lambda cell: cell.seed), found)


def count_missing(protocol: str, only: Sequence[str], found: Found) -> int:
    """Return the largest number of cells that `batches` can yield, as if the best of every grid were at an edge."""
    return sum(_left(run, found) for run in runs(protocol, only))


def _left(run: Run, found: Found) -> int:
    known = {cell.key() for cell in (*grid(run), *wider(run, found), *seeds(run, found))}
    most = len(known) if tuned(run, found) else len(SEEDS) + len(grid(run))
    return most - len(known & found.keys())


def _best(cells: Sequence[Cell], found: Found) -> Cell | None:
    scores = [found[key]["validation"] for cell in cells if (key := cell.key()) in found]
    return cells[scores.index(max(scores))] if scores and len(scores) == len(cells) else None


def _missing(cells: Iterable[Cell], found: Found) -> list[Cell]:
    by_key = {cell.key(): cell for cell in cells}
    return [cell for key, cell in by_key.items() if key not in found]
