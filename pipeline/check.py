"""`python -m pipeline.check`: check params.yaml and the tables, and show what would run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipeline.core.console import Parser, warn_without_identity
from pipeline.params import PARAMS, TrainView, load, load_params
from pipeline.params.reading import all_of


def main(words: Sequence[str] | None = None) -> None:
    """Check params.yaml, with the sections of all methods, and all rows of the tables; print what would run.

    The chosen model and the chosen files must be there, too.
    """
    parser = Parser("python -m pipeline.check", __doc__, f"All values are in {PARAMS}.")
    with parser.parsed(words):
        view = load(TrainView)
        from pipeline import tasks
        from pipeline.data import base_models, content  # these take seconds, so after what can be checked without them
        from pipeline.methods.planning import configured

        row, task, where = view.base_model, tasks.of(view.dataset), f"{view.dataset.where}: {view.data}"
        checks: list[Callable[[], Any]] = [
            partial(content.digests, view.dataset.source, where),
            partial(base_models.load_config, row, task),
        ]
        # What PEFT's configurations of the methods do not allow, whatever the model is.
        sections = load_params().sections.values()
        checks += [partial(configured, section, seed=0, targets=["query"], trained_whole=[]) for section in sections]
        all_of(checks)
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")
        warn_without_identity()


if __name__ == "__main__":
    main()
