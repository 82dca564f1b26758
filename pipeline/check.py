"""`python -m pipeline.check`: check params.yaml and the tables, and show what would run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipeline.core.console import Parser, warn_without_identity
from pipeline.params import PARAMS, TrainView, load, load_params
from pipeline.params.reading import all_of
from pipeline.params.sections import MethodParams


def main(words: Sequence[str] | None = None) -> None:
    """Check params.yaml, with the sections of all methods, and all rows of the tables; print what would run.

    The chosen model and the chosen files must be there, too, and the chosen method must fit the model's layers, and
    training this machine.
    """
    parser = Parser("python -m pipeline.check", __doc__, f"All values are in {PARAMS}.")
    with parser.parsed(words):
        view = load(TrainView)
        from pipeline.data import content  # these take seconds, so after what can be checked without them
        from pipeline.methods.planning import configured
        from pipeline.training import processes

        where = f"{view.dataset.where}: {view.data}"
        checks: list[Callable[[], Any]] = [
            partial(content.digests, view.dataset.source, where),
            partial(processes.check_machine, view.train),
        ]
        # What PEFT's configurations of the methods do not allow, whatever the model is.
        sections = load_params().sections.values()
        checks += [
            partial(configured, section, seed=0, targets=_targets(section), trained_whole=[]) for section in sections
        ]
        all_of([*checks, partial(_plan, view)])
        print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")
        warn_without_identity()


def _targets(section: MethodParams) -> str | list[str]:
    """Return the layers that a section names itself, or a layer that any model might have."""
    chosen = getattr(section, "target_modules", "default")
    if chosen in ("default", "none"):
        return ["query"]
    return chosen if isinstance(chosen, str) else list(chosen)


def _plan(view: TrainView) -> None:
    """Check that the chosen method fits the names and shapes of the model's layers, of which no weights are read.

    Raises:
        UserError: if it does not, or there is no such model.
    """
    from pipeline import tasks
    from pipeline.data import base_models
    from pipeline.methods import planning

    planning.resolve(view, base_models.outline(view.base_model, tasks.of(view.dataset)))


if __name__ == "__main__":
    main()
