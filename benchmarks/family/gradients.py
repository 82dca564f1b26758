"""What frames are made of: the gradients of a data set, through a head that is fitted first.

They stay in memory, for many cells need the same. What they draw has seeds of its own, so no cell depends on the cells
before it.
"""

from collections.abc import Mapping
from functools import lru_cache

from transformers import set_seed

from benchmarks.family import inputs
from benchmarks.family.experiment import Sizes
from lsr.algebra.spectrum import Matrix
from pipeline import params
from pipeline.methods import adapters, base_models

KEPT = 8  # data sets by seed: 14 MB each, for query and value of MiniLM


@lru_cache(KEPT)
def gradients(
    data: str,
    model: str,
    max_length: int,
    sizes: Sizes,
    targets: tuple[str, ...],  # name endings of layers
    examples: int,
    head_steps: int,
    seed: int,
) -> Mapping[str, Matrix]:  # (m, n) by layer name, for the layers of all indices
    """Return the mean gradients over examples of the train split."""
    set_seed(seed)  # the head is drawn when the checkpoint loads
    row = params.load_row("model", model)
    base = base_models.load_base_model(row, params.load_row("data", data))
    endings = tuple(f".{target}" for target in targets)
    names = [name for name, _ in base.named_modules() if name.endswith(endings)]
    train = inputs.splits(data, model, max_length, sizes)["train"]
    batches = inputs.sample(train, examples, seed, inputs.collator(model))
    return adapters.gradients(base, names, batches, row, head_steps, seed)
