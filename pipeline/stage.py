"""How a stage starts and how it fails: `if __name__ == "__main__": stage.run(main, View)`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from pipeline import params, ranks
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, leaving_in_plain_lines

CHECKS = ("check", "check-model")  # the stages that have no outputs to lose


class Processes(Enum):
    """What a stage does where a launcher has started several processes."""

    ONE = "it is refused"
    FIRST = "the first process does it all, and the others leave"
    ALL = "they work together"


def run(
    main: Callable[[params.AnyView], None], view: type[params.AnyView], processes: Processes = Processes.ONE
) -> None:
    """Check params.yaml, run the stage, and turn a user's mistake into plain lines.

    Raises:
        SystemExit: with code 2 after a mistake in params, data or model, 1 where a disk or stream is full, 130 after
            Ctrl-C.
    """
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    program = f"python -m {name}"
    argparse.ArgumentParser(
        prog=program,
        description=module.__doc__,
        epilog="It takes no arguments: all values are in params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    stopped = "stopped; nothing was half written"
    with _telling_how_to_go_back(), leaving_in_plain_lines(stopped, program, may_speak=ranks.may_speak):
        if processes is Processes.ONE:
            ranks.refuse_others(name)
        elif processes is Processes.FIRST and not ranks.is_first():
            return
        elif processes is Processes.FIRST:
            ranks.stay_alone()
        with ranks.together(), console.warnings_in_lines(name.rpartition(".")[2].replace("_", "-")):
            checked = params.load(view)
            if ranks.is_first():
                artifacts.sweep()
            ranks.wait()
            main(checked)


@contextmanager
def _telling_how_to_go_back() -> Iterator[None]:
    """Say at a bad end what to do about outputs that DVC has removed: not in a temporary copy, which has none to miss.

    Raises:
        SystemExit: as it came.
    """
    name = os.environ.get("DVC_STAGE", CHECKS[0]).rpartition(":")[2]
    try:
        yield
    except SystemExit as end:
        if end.code and name not in CHECKS and Path(os.environ.get("DVC_ROOT", ".")).resolve() == Path.cwd():
            restored = "undo the change and run `dvc repro` to restore them"
            with suppress(OSError, UserError):  # standard error is full, or the launcher's words are none
                if ranks.is_first():
                    print(f"{name}: DVC removed its last outputs before it began; {restored}", file=sys.stderr)
        raise
