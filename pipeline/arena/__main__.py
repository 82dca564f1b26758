"""`python -m pipeline.arena`, or make arena: train all methods of a preset on its tasks.

Learning rates are tuned, and training is repeated with several seeds. Presets are in pipeline/arena.yaml. Records of
finished training runs are in reports/arena/PRESET/, and a stopped run resumes from them; records from other machines
are read, too, if their files are copied there.
"""

from collections.abc import Sequence

from pipeline.arena import plan, preset, record
from pipeline.arena.execution import run_all
from pipeline.core import console
from pipeline.core.console import Parser, whole_number


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    with _parser().parse(arguments, "stopped; finished training runs are kept") as options:
        folder = record.FOLDER / options.preset
        chosen = preset.load(options.preset)
        cells = plan.cells(options.preset, chosen, options.only)
        new = folder / f"{options.write}{record.ENDING}"
        run_all(cells, record.read(folder), new, options.jobs)
        console.line(f"compare: python -m pipeline.compare {options.preset}")


def _parser() -> Parser:
    parser = Parser(
        "python -m pipeline.arena",
        "Run a benchmark: train all methods of a preset on its tasks, with tuned learning rates and several seeds. "
        "Finished training runs are kept in reports/arena/PRESET/, and an interrupted benchmark resumes from them.",
    )
    add = parser.add_argument
    add(
        "preset",
        nargs="?",
        metavar="PRESET",
        default="offline",
        help="preset in pipeline/arena.yaml (default: %(default)s)",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="run only what has TEXT in its title TASK: METHOD, such as 'tweets: LoRA r=1' (default: all); may be "
        "repeated to require several",
    )
    parallel = "number of training runs in parallel (default: %(default)s)"
    add("--jobs", type=whole_number(1, 64), default=2, metavar="N", help=parallel)
    file = "name of the file for new records, without extension (default: %(default)s)"
    add("--write", default="records", metavar="NAME", help=file)
    return parser


if __name__ == "__main__":
    main()
