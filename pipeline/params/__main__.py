"""`python -m pipeline.params`: check params.yaml and show what would run."""

import argparse
from collections.abc import Iterable, Sequence

from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error
from pipeline.params import PARAMS, MethodParams, TrainView, load, load_params

PROGRAM = "python -m pipeline.params"


def main(words: Sequence[str] | None = None) -> None:
    """Check params.yaml, with the sections of all methods, and print one line that says what would run.

    Raises:
        SystemExit: with exit code 2, if there is a mistake.
    """
    Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog=f"It takes no arguments: all values are in {PARAMS}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        view = load(TrainView)
        _check_with_peft(load_params().sections.values())
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")


def _check_with_peft(sections: Iterable[MethodParams]) -> None:
    """Check what PEFT's configurations of the methods do not allow, whatever the model is.

    Raises:
        UserError: with one line for each mistake.
    """
    from pipeline.methods.table import configured  # takes seconds, so after what can be checked without PEFT

    mistakes = []
    for section in sections:
        try:
            configured(section, seed=0, targets=["query"], trained_whole=[])
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))


if __name__ == "__main__":
    main()
