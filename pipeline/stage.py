"""How a stage starts: `if __name__ == "__main__": stage.run(main, View)`."""

import os
import sys
import time
from collections.abc import Callable

from pipeline import params
from pipeline.core import console
from pipeline.core.console import Parser
from pipeline.params.reading import AnyView


def run(main: Callable[[AnyView], None], view: type[AnyView]) -> None:
    """Check the whole of params.yaml, run the stage and say how long it took; a mistake ends as of `exit_on_error`."""
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    about = "It takes no arguments: all values are in params.yaml."
    with Parser(f"python -m {name}", module.__doc__, about).parsed():
        start = time.monotonic()
        main(params.load(view))
        if "RANK" not in os.environ:
            console.line(f"{name.rpartition('.')[2]}: {time.monotonic() - start:,.0f} seconds")
