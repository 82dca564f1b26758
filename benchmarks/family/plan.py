"""Which cells there are: those that tune the learning rate of a run, and its layers where it chooses them; then seeds.

Every method has the same number of tries a place: the grid, and one more rate where the best is at its edge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.family.experiment import DATA, SEEDS, Cell, Run, beyond
from benchmarks.family.measure import Line
from benchmarks.family.methods import METHODS, of_protocol

Found = Mapping[str, Line]  # by the keys of their cells


def runs(protocol: str, only: str = "") -> list[Run]:
    """Return the runs of a protocol whose names hold `only`, by data set."""
    listed = [Run(protocol, data, method) for data in DATA for method in of_protocol(protocol)]
    return [run for run in listed if only in run.name and METHODS[run.method].pool != run.data]


def grid(run: Run) -> list[Cell]:
    """Return the cells that tune a run, with the first seed; none where another run is tuned for it."""
    if METHODS[run.method].like:
        return []
    return [Cell(run, place, rate, SEEDS[0]) for place in METHODS[run.method].places for rate in run.rates()]


def wider(run: Run, found: Found) -> list[Cell]:
    """Return the one cell beyond the grid where its best is at an edge, in the layers of that one; else none."""
    best = _best(grid(run), found)
    further = None if best is None else beyond(best.rate, run.rates())
    return [] if best is None or further is None else [best._replace(rate=further)]


def tuned(run: Run, found: Found) -> Cell | None:
    """Return the cell whose trained model has the best validation score, of several the first; None if one is missing.

    The test score has no say.
    """
    if like := METHODS[run.method].like:
        other = tuned(run._replace(method=like), found)
        return other and other._replace(run=run)
    return _best([*grid(run), *wider(run, found)], found)


def is_at_edge(cell: Cell) -> bool:
    """Return whether a tuned cell has the least or the greatest rate that was tried: the next one might be better."""
    return cell.rate not in cell.run.rates()


def seeds(run: Run, found: Found) -> list[Cell]:
    """Return the cells of all seeds, as they are tuned; none before that."""
    best = tuned(run, found)
    return [] if best is None else [best._replace(seed=seed) for seed in SEEDS]


def batches(protocol: str, only: str, found: Found) -> Iterator[list[Cell]]:
    """Yield the missing cells of a protocol, for each data set: the grids, what is beyond them, and the seeds.

    `found` must hold the lines of one batch before the next is asked for.
    """
    for data in DATA:
        chosen = [run for run in runs(protocol, only) if run.data == data]
        yield _missing((cell for run in chosen for cell in grid(run)), found)
        yield _missing((cell for run in chosen for cell in wider(run, found)), found)
        # Those of one seed are neighbors, for they have gradients in common.
        yield _missing(sorted((c for run in chosen for c in seeds(run, found)), key=lambda cell: cell.seed), found)


def count_missing(protocol: str, only: str, found: Found) -> int:
    """Return how many cells `batches` will yield at most: as if the best of every grid were at an edge."""
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
