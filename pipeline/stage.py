"""How a stage starts and how it fails: `if __name__ == "__main__": stage.run(main, View)`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline import artifacts, params
from pipeline.errors import leaving_in_plain_lines

FIRST = "check"  # the stage that has no outputs to lose


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
    with _telling_how_to_go_back(), leaving_in_plain_lines("stopped; nothing was half written", program):
        checked = params.load(view)
        artifacts.sweep()
        main(checked)


@contextmanager
def _telling_how_to_go_back() -> Iterator[None]:
    """Say at a bad end what to do about outputs that DVC has removed: not in a temporary copy, which has none to miss.

    Raises:
        SystemExit: as it came.
    """
    name = os.environ.get("DVC_STAGE", FIRST).rpartition(":")[2]
    try:
        yield
    except SystemExit as end:
        if end.code and name != FIRST and Path(os.environ.get("DVC_ROOT", ".")).resolve() == Path.cwd():
            restored = "undo the change and run `dvc repro` to restore them"
            with suppress(OSError):  # nobody can be told where standard error is full
                print(f"{name}: DVC removed its last outputs before it began; {restored}", file=sys.stderr)
        raise
