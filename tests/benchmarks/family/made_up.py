"""Lines of cells that no one has run."""

from benchmarks.family import plan
from benchmarks.family.experiment import SEEDS, Run
from benchmarks.family.methods import METHODS

RUN = Run("short", "movie-reviews", "core r=4")


def line(cell, **fields):
    """The line of a cell, by its key."""
    usual = {"validation": 0.5, "test": 0.5, "trained": 100, "stored": 120, "pooled": 0, "seconds": 2.0}
    found = {"key": cell.key(), "name": cell.run.name, "layers": cell.layers, "rate": cell.rate, "seed": cell.seed}
    return {cell.key(): found | usual | fields}


def finished(run, tests, rate=None, place=None, **fields):
    """The lines of a run that is tuned to a rate and a place of its grid, with test scores by seed."""
    rate, place = rate or run.rates()[1], place or METHODS[run.method].places[0]
    best = next(cell for cell in plan.grid(run) if (cell.rate, cell.layers) == (rate, place))
    found = {}
    for cell in plan.grid(run):
        found |= line(cell, validation=0.0, test=0.0, **fields)
    for seed, test in zip(SEEDS, tests, strict=False):
        found |= line(best._replace(seed=seed), **{"validation": 0.7, **fields}, test=test)
    for cell in plan.wider(run, found):
        found |= line(cell, validation=0.1)
    return found
