"""Which cells there are: the learning rate is tuned per method and setting, then all seeds run at the best rate."""

from collections.abc import Iterable, Iterator, Mapping

from benchmarks.init.experiment import RATES, SEEDS, SETTINGS, Cell, Setting
from benchmarks.init.measure import Line

Found = Mapping[str, Line]  # by the keys of their cells


def tuning(setting: Setting, method: str) -> dict[float, Cell]:
    """Return, by learning rate, the cells that tune it: with the first seed."""
    return {rate: Cell(setting, method, rate, SEEDS[0]) for rate in RATES}


def tuned_rate(setting: Setting, method: str, found: Found) -> float | None:
    """Return the rate whose trained model has the best validation score, the smaller of two; None if one is missing.

    The test score has no say.
    """
    lines = {rate: found.get(cell.key()) for rate, cell in tuning(setting, method).items()}
    scores = {rate: line["last"] for rate, line in lines.items() if line}
    return max(sorted(scores), key=scores.__getitem__) if len(scores) == len(lines) else None


def seeds(setting: Setting, method: str, found: Found) -> list[Cell]:
    """Return the cells of all seeds at the tuned rate; none before it is tuned."""
    rate = tuned_rate(setting, method, found)
    return [] if rate is None else [Cell(setting, method, rate, seed) for seed in SEEDS]


def batches(only: str, found: Found) -> Iterator[list[Cell]]:
    """Yield the missing cells whose names hold `only`: for each setting those that tune, then the seeds.

    `found` must hold the lines of one batch before the next is asked for.
    """
    for setting in SETTINGS:
        methods = _chosen(setting, only)
        yield _missing((cell for method in methods for cell in tuning(setting, method).values()), found)
        yield _missing((cell for method in methods for cell in seeds(setting, method, found)), found)


def count_missing(only: str, found: Found) -> int:
    """Return how many cells `batches` will yield in all."""
    runs = {}  # settings that differ in their separation rank share the references: the same cell is the same run
    for setting in SETTINGS:
        for method in _chosen(setting, only):
            runs[tuning(setting, method)[RATES[0]].key()] = setting, method
    known = [{cell.key() for cell in (*tuning(*run).values(), *seeds(*run, found))} for run in runs.values()]
    done = sum(len(keys & found.keys()) for keys in known)
    return len(runs) * (len(RATES) + len(SEEDS) - 1) - done


def _chosen(setting: Setting, only: str) -> list[str]:
    return [method for method in setting.methods if only in Cell(setting, method, RATES[0], SEEDS[0]).name]


def _missing(cells: Iterable[Cell], found: Found) -> list[Cell]:
    by_key = {cell.key(): cell for cell in cells}
    return [cell for key, cell in by_key.items() if key not in found]
