"""How a stage starts and how it fails: `if __name__ == "__main__": stage.run(main, View)`."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import params
from pipeline.core import artifacts, console
from pipeline.core.console import Parser
from pipeline.core.errors import STOPPED, exit_on_error
from pipeline.params.reading import AnyView


def run(main: Callable[[AnyView], None], view: type[AnyView]) -> None:
    """Check the whole of params.yaml, run the stage and say how long it took; a mistake ends as of `exit_on_error`."""
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    program = f"python -m {name}"
    Parser(program, module.__doc__, "It takes no arguments: all values are in params.yaml.").parse_args()
    with exit_with_advice(program):
        start = time.monotonic()
        main(params.load(view))
        if "RANK" not in os.environ:
            console.line(f"{name.rpartition('.')[2]}: {time.monotonic() - start:,.0f} seconds")


@contextmanager
def exit_with_advice(program: str) -> Iterator[None]:
    """Turn a user's mistake into one line, and say what to do next where DVC runs the program.

    Raises:
        SystemExit: as of `exit_on_error`.
    """
    try:
        with exit_on_error("stopped", program):
            yield
    except SystemExit as end:
        if "DVC_STAGE" in os.environ and "RANK" not in os.environ and not artifacts.is_temporary_copy():
            undo = "undo the change and run `dvc repro` to restore what DVC has removed\n"
            undo += f"-S leaves {params.PARAMS} edited; to undo all edits of it: git checkout HEAD {params.PARAMS}"
            again = "run it again: a training goes on from its last complete epoch"
            print(again if end.code == STOPPED else undo, file=sys.stderr)
        raise
