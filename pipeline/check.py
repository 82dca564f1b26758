"""`python -m pipeline.check`: check params.yaml and the registries, and show what would run."""

from collections.abc import Sequence
from functools import partial

from pipeline.core.console import Parser, warn_without_identity
from pipeline.params import PARAMS, TrainView, load, load_params
from pipeline.params.reading import all_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Check params.yaml with all methods' sections and all registry entries; print the planned run.

    The chosen model and files must exist, the chosen method must fit the model's layers, and this machine must be able
    to train as configured.
    """
    parser = Parser(
        "python -m pipeline.check",
        f"Validate {PARAMS} and the registries of data sets and models, check that the chosen model and data exist "
        "and that the settings fit them and this machine, and print what would run. Nothing is trained.",
    )
    with parser.parse(arguments):
        view = load(TrainView)
        from pipeline.data import content  # these take seconds, so after what can be checked without them
        from pipeline.methods import planning
        from pipeline.training import processes

        where = f"{view.dataset.where}: {view.data}"
        sections = load_params().sections.values()
        all_of(
            [
                partial(content.digests, view.dataset.source, where),
                partial(processes.check_machine, view.train),
                *(partial(planning.check_options, section) for section in sections),
                partial(planning.check, view),
            ]
        )
        print(f"{PARAMS}: OK: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")
        warn_without_identity()


if __name__ == "__main__":
    main()
