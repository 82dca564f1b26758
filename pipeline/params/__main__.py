"""`python -m pipeline.params`: check params.yaml and show what would run."""

from pipeline.errors import leaving_in_plain_lines
from pipeline.params import PARAMS, TrainView, load


def main() -> None:
    """Check params.yaml and print one line that says what would run.

    Raises:
        SystemExit: with exit code 2, if there is a mistake.
    """
    with leaving_in_plain_lines("stopped", "python -m pipeline.params"):
        view = load(TrainView)
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")


if __name__ == "__main__":
    main()
