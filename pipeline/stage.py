"""Run a stage: `if __name__ == "__main__": stage.run(main, View, description)`."""

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
    """Validate params.yaml, run the stage and print its duration. Errors are handled by `exit_on_error`.

    `description` is for --help. `then` is a module that prints something at the end, in a process of its own. It runs
    before the inputs are compared, so that DVC hashes them right afterwards.
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
                seconds = round(time.monotonic() - start)
                plural = "s" * (seconds != 1)
                console.line(f"{name.rpartition('.')[2]}: {seconds:,} second{plural}")
            if then is not None:
                _print(then)


def _print(module: str) -> None:
    """Run a module that prints something.

    Raises:
        UserError: with its message, if the user can fix it.
        SystemExit: with its exit code otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}  # advice comes once
    arguments = [sys.executable, "-m", module]
    sys.stdout.flush()
    run = subprocess.run(arguments, env=environment, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if run.returncode == MISTAKE:
        raise UserError(run.stderr)
    sys.stderr.write(run.stderr)
    if run.returncode:
        raise SystemExit(run.returncode)


@contextmanager
def guard_inputs(stage: str, view: type[AnyView]) -> Iterator[AnyView]:
    """Yield the view of a stage; if an input has changed at the end, the stage's outputs are removed.

    Raises:
        UserError: if an input has changed, or differs from the input of the stage tokenize.
        SystemExit: if one of the processes of a training run has failed, with that process's exit code.
    """
    if not console.IS_FIRST:  # the first process of a training run compares for all: it writes when others have ended
        yield params.load(view)
        return
    values = inputs.values(stage)  # hashed before they are read: the stage may miss a later edit
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
    """Check that the inputs of a stage are unchanged; otherwise remove its outputs.

    Raises:
        UserError: if an input has changed; names it.
    """
    changed = inputs.differences(before, inputs.at_end(stage, loaded))
    if changed:
        remove_outputs(stage)
        others = f", and so did {len(changed) - 1} more" if len(changed) > 1 else ""
        happened = f"{changed[0]} while the stage {stage} ran{others}"
        raise UserError(f"{happened}; its outputs are removed: run it again, or undo the change first")


def remove_outputs(stage: str) -> None:
    """Remove the outputs of a stage, and restore the last adapter if there was one."""
    outputs = inputs.outputs(stage)
    for path in outputs:
        artifacts.remove(path)
    if artifacts.ADAPTER in outputs:
        previous.restore()
