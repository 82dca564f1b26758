"""How a stage starts and how it fails: `if __name__ == "__main__": stage.run(main, View)`."""

import os
import sys
import time
from collections.abc import Callable

from pipeline import params
from pipeline.core import artifacts, seconds
from pipeline.core.command_line import Parser
from pipeline.core.errors import exit_on_error
from pipeline.params.reading import AnyView


def run(main: Callable[[AnyView], None], view: type[AnyView]) -> None:
    """Check the whole of params.yaml, run the stage, and turn a user's mistake into one line.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 1 if a file cannot be read or written, 130
            after Ctrl-C.
    """
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    program = f"python -m {name}"
    Parser(program, module.__doc__, "It takes no arguments: all values are in params.yaml.").parse_args()
    try:
        with exit_on_error("stopped", program):
            start = time.monotonic()
            main(params.load(view))
            if os.environ.get("RANK", "0") == "0":
                seconds.record(name.rpartition(".")[2], time.monotonic() - start)
    except SystemExit:
        if "DVC_STAGE" in os.environ and "RANK" not in os.environ and not artifacts.is_temporary_copy():
            print("undo the change and run `dvc repro` to restore what DVC has removed", file=sys.stderr)
        raise
