"""The inputs of cells as tasks of the arena, which caches them for all cells."""

from functools import cache

from benchmarks.family.experiment import Sizes
from pipeline import params
from pipeline.arena.inputs import Task
from pipeline.arena.preset import Reads


@cache
def task(data: str, model: str, max_length: int, sizes: Sizes) -> Task:
    """Return a data set truncated to `max_length`, as much of it as the sizes allow."""
    reads = Reads(**{name: "all" if size is None else size for name, size in sizes._asdict().items()})
    return Task(data, params.load_row("data", data), params.load_row("model", model), max_length, reads)
