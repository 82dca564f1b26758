"""`python -m pipeline.params`: check params.yaml and show what would run."""

import argparse
from collections.abc import Sequence

from pipeline.core.command_line import Parser
from pipeline.core.errors import exit_on_error
from pipeline.params import PARAMS, TrainView, load

PROGRAM = "python -m pipeline.params"


def main(words: Sequence[str] | None = None) -> None:
    """Check params.yaml and print one line that says what would run.

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
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")


if __name__ == "__main__":
    main()
