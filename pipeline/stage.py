"""How a stage starts and how it fails: `if __name__ == "__main__": stage.run(main, View)`."""

import argparse
import sys
from collections.abc import Callable

from pipeline import artifacts, params
from pipeline.errors import leaving_in_plain_lines


def run(main: Callable[[params.AnyView], None], view: type[params.AnyView]) -> None:
    """Check params.yaml, run the stage, and turn a user's mistake into plain lines.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 1 where a disk or stream is full, 130 after
            Ctrl-C.
    """
    module = sys.modules[main.__module__]
    program = f"python -m {module.__spec__.name if module.__spec__ else module.__name__}"
    argparse.ArgumentParser(
        prog=program,
        description=module.__doc__,
        epilog="It takes no arguments: all values are in params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    with leaving_in_plain_lines("stopped; nothing was half written", program):
        checked = params.load(view)
        artifacts.sweep()
        main(checked)
