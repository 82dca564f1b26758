"""`python -m pipeline.check`: check params.yaml and the tables, and show what would run."""

from collections.abc import Sequence
from functools import partial

from pipeline.core.command_line import Parser, warn_without_identity
from pipeline.core.errors import exit_on_error
from pipeline.params import PARAMS, TrainView, load, load_params
from pipeline.params.reading import all_of

PROGRAM = "python -m pipeline.check"


def main(words: Sequence[str] | None = None) -> None:
    """Check params.yaml, with the sections of all methods, and all rows of the tables; print what would run.

    The chosen model and the chosen files must be there, too.
    """
    Parser(PROGRAM, __doc__, f"It takes no arguments: all values are in {PARAMS}.").parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        view = load(TrainView)
        from pipeline.methods.planning import configured  # takes seconds, so after what can be checked without PEFT

        # What PEFT's configurations of the methods do not allow, whatever the model is.
        sections = load_params().sections.values()
        all_of(
            [
                partial(_check_is_there, view),
                *(partial(configured, section, seed=0, targets=["query"], trained_whole=[]) for section in sections),
            ]
        )
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")
        warn_without_identity()


def _check_is_there(view: TrainView) -> None:
    # Check that the files of the data are there, and that the model is, with a head for the task.
    from pipeline import tasks
    from pipeline.data import base_models, content  # takes seconds, so after what can be checked without transformers

    content.digests(view.dataset.source, f"{view.dataset.where}: {view.data}")
    base_models.load_config(view.base_model, tasks.of(view.dataset))


if __name__ == "__main__":
    main()
