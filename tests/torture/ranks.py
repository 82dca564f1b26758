"""Several processes train what one does: the same examples a step, so the same curves and weights but for rounding."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from random import Random

import pandas as pd
import torch
from safetensors.torch import load_file

from pipeline.core import artifacts
from tests import repository, workspace
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, leftovers, run
from tests.torture.children import check_plain, ended
from tests.torture.trials import Case, Trial

PROCESSES = (2, 4)
CLOSE = {"rtol": 1e-3, "atol": 1e-5}  # sums in another order, over a few dozen steps
WEIGHTS = artifacts.ADAPTER / "adapter_model.safetensors"
CURVES = tuple(artifacts.TRAIN_CURVES / f"{name}.csv" for name in ("loss", "validation_loss", "validation_score"))


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Train on two and on four processes with other seeds and rates."""

    def trial(seed: int, adapter: str, processes: int, work: Path) -> None:
        workspace.make(work, seed=seed, adapter=adapter, train={"batch_size": 16, "epochs": 2})
        check_plain(ended(work, train_alone), {0})
        with chdir(work):
            weights, curves = load_file(WEIGHTS), [pd.read_csv(path) for path in CURVES]
            shutil.rmtree(artifacts.ADAPTER)
            shutil.rmtree(artifacts.TRAIN_CURVES)
            launch = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes))
            environment = {"PYTHONPATH": str(workspace.ROOT)}
            repository.command(work, *launch, "-m", "stages.train", **environment)
            torch.testing.assert_close(load_file(WEIGHTS), weights, **CLOSE)
            for path, curve in zip(CURVES, curves, strict=True):
                pd.testing.assert_frame_equal(pd.read_csv(path), curve, check_dtype=False, **CLOSE)
            assert leftovers() == set()

    for number in range(count):
        processes, adapter = PROCESSES[number % len(PROCESSES)], random.choice(("lsr", "lora", "full", "head"))
        seed = random.randrange(2**32)
        what = f"{processes} processes, {adapter}, seed {seed}"
        yield Trial(what, partial(trial, seed, adapter, processes, folder / str(number)))


def train_alone() -> None:
    """Run the stages up to the training in one process."""
    run(TOKENIZE, FACTORIZE, TRAIN)


CASES = (Case("processes", 8, trials),)
