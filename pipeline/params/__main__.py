"""`python -m pipeline.params`: check params.yaml, and say what would run."""

import sys

from pipeline.errors import UserError
from pipeline.params import PARAMS, TrainView, load


def main() -> None:
    """Check params.yaml and say in one line what would run.

    Raises:
        SystemExit: with exit code 2, if there is a mistake.
    """
    try:
        view = load(TrainView)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")


if __name__ == "__main__":
    main()
