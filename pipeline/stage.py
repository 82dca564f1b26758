"""How a stage runs: `if __name__ == "__main__": stage.run(main, View, description)`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import params, previous
from pipeline.core import artifacts, console
from pipeline.core.console import Parser
from pipeline.core.errors import MISTAKE, UserError
from pipeline.data import inputs
from pipeline.params.reading import AnyView
from pipeline.params.schema import View


def run(main: Callable[[AnyView], None], view: type[AnyView], description: str, then: str | None = None) -> None:
    """Check the whole of params.yaml, run the stage and say how long it took; a mistake ends as of `exit_on_error`.

    `description` is for --help. `then` is a module that prints something at the end, in a process of its own. Its time
    comes before the comparison of the inputs, after which DVC hashes them at once.
    """
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    stage = name.rpartition(".")[2].replace("_", "-")
    note = "All settings are in params.yaml; `dvc repro` runs a stage whose inputs have changed."
    with Parser(f"python -m {name}", description, note).parse():
        start = time.monotonic()
        with guard_inputs(stage, view) as loaded:
            main(loaded)
            if "RANK" not in os.environ:
                console.line(f"{name.rpartition('.')[2]}: {time.monotonic() - start:,.0f} seconds")
            if then is not None:
                _print(then)


def _print(module: str) -> None:
    """Run a module that prints something.

    Raises:
        UserError: with what it says, if a user can mend it.
        SystemExit: as it ends otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}  # advice comes once
    words = [sys.executable, "-m", module]
    sys.stdout.flush()
    run = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if run.returncode == MISTAKE:
        raise UserError(run.stderr)
    sys.stderr.write(run.stderr)
    if run.returncode:
        raise SystemExit(run.returncode)


@contextmanager
def guard_inputs(stage: str, view: type[AnyView]) -> Iterator[AnyView]:
    """Yield the view of a stage, whose outputs are removed if what it reads is another one at the end.

    Raises:
        UserError: if an input has changed, or is not what the stage tokenize has read.
        SystemExit: as one of its processes has ended.
    """
    if not console.IS_FIRST:  # the first process of a training run compares for all: it writes when others have ended
        yield params.load(view)
        return
    values = inputs.values(stage)  # before they are read: a later edit is one that the stage may have missed
    loaded = params.load(view)
    before = values | inputs.at_start(stage, loaded)
    if stage != inputs.TOKENIZE:
        inputs.check_recorded(loaded, before)
    try:
        yield loaded
    except SystemExit:  # one of the processes of a training run has reported why
        if inputs.differences(before, inputs.at_end(stage, loaded)):
            remove_outputs(stage)
        raise
    except Exception:
        check(stage, before, loaded)  # a change may be why it has failed
        raise
    check(stage, before, loaded)


def check(stage: str, before: inputs.Inputs, loaded: View) -> None:
    """Check that what a stage reads is what it was; otherwise remove what it has written.

    Raises:
        UserError: says which input has changed.
    """
    changed = inputs.differences(before, inputs.at_end(stage, loaded))
    if changed:
        remove_outputs(stage)
        others = f", and so did {len(changed) - 1} more" if len(changed) > 1 else ""
        happened = f"{changed[0]} while the stage {stage} ran{others}"
        raise UserError(f"{happened}; its outputs are removed: run it again, or undo the change first")


def remove_outputs(stage: str) -> None:
    """Remove what a stage has written; the last adapter comes back if there was one."""
    outputs = inputs.outputs(stage)
    for path in outputs:
        artifacts.remove(path)
    if artifacts.ADAPTER in outputs:
        previous.restore()
