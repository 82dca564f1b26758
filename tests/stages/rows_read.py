"""`python -m tests.stages.rows_read FILE EPOCHS`: the stage train, which notes the rows of train that it reads.

Each process appends to FILE and its number a line per epoch, as JSON: the epoch and its rows, in their order. After so
many EPOCHS it dies, if they are not all.
"""

import json
import os
import sys
from pathlib import Path

from datasets import Dataset
from transformers.trainer_callback import CallbackHandler

from pipeline.core import artifacts
from tests.stages.running import TRAIN, run

DEAD = 9  # exit status


def main(file, epochs):
    rows, count = [], len(Dataset.from_file(str(artifacts.tokens("train"))))
    path = Path(f"{file}-{os.environ['RANK']}")
    read, end_step, end_epoch = Dataset.__getitems__, CallbackHandler.on_step_end, CallbackHandler.on_epoch_end

    def noted(dataset, indices):
        if len(dataset) == count:
            rows.extend(indices)
        return read(dataset, indices)

    def die(handler, args, state, control):
        if state.epoch > epochs:
            os._exit(DEAD)
        return end_step(handler, args, state, control)

    def write(handler, args, state, control):
        with path.open("a") as lines:
            print(json.dumps([round(state.epoch), rows]), file=lines)
        rows.clear()
        return end_epoch(handler, args, state, control)

    Dataset.__getitems__, CallbackHandler.on_step_end, CallbackHandler.on_epoch_end = noted, die, write
    run(TRAIN)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
