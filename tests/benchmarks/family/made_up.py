"""Methods, rates and lines of cells that no one has run: what is compared may change, the way it is done does not."""

from benchmarks.family import plan
from benchmarks.family.experiment import SEEDS, Run
from benchmarks.family.methods import (
    ALL_LINEAR,
    FULL_SCALE,
    METHODS,
    RUNS,
    Method,
    core,
    diagonal,
    directions,
    kronecker,
    lora,
    shared,
)

REAL = dict(METHODS)  # before tests have others
GRID = (0.0015, 0.003, 0.006, 0.012)
PLACES = ((2,), (3,), (1, 3), (5,))
TABLE = {
    "diagonal r=12": Method("core", diagonal(12)),
    "diagonal r=8, all linear": Method("core", diagonal(8, target_modules=ALL_LINEAR)),
    "9 directions, all linear": Method("core", directions(9)),
    "core r=4": Method("core", core(4), is_long=True),
    "core r=4, last layers": Method("core", core(4), ((4, 5),), is_long=True),
    "core r=12, signs": Method("signs", core(12, frames_dtype="sign")),
    "shared core r=4": Method("core", shared(4, train="core")),
    "pooled core r=4": Method("pooled", core(4), pool="pooled"),
    "left-out core r=4": Method("pooled", core(4), pool="left out"),
    "foreign core r=4": Method("foreign", core(4), pool="tweets", like="core r=4"),
    "shared r=2": Method("shared", shared(2)),
    "shared r=2, value": Method("shared", shared(2, target_modules=("value",))),
    "LSR r=4 s=4": Method("factors", kronecker(4)),
    "LoRA r=1, one layer": Method("few", lora(1), PLACES),
    "LoRA r=1, two layers": Method("few", lora(1), RUNS[2]),
    "LoRA r=1, three layers": Method("few", lora(1), RUNS[3]),
    "LoRA r=1": Method("lora", lora(1), is_long=True),
    "LoRA r=8": Method("lora", lora(8), is_long=True),
    "LoRA-XS r=12": Method("svd", core(12, init="principal")),
    "LoRA-SB r=12": Method("svd", core(12, head_steps=0)),
    "head alone": Method("ends", {"adapter": "head"}),
    "every weight": Method("ends", {"adapter": "full"}, scale=FULL_SCALE),
}
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
