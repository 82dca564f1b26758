"""`python -m pipeline.arena`, or make arena: train all methods of a preset on its tasks.

Learning rates are tuned, and training is repeated with several seeds. Presets are in pipeline/arena.yaml. Finished
trainings are kept in reports/arena/PRESET/, and a stopped run resumes from them; records from other machines are read,
too, if their files are copied there.
"""

from collections.abc import Sequence

from pipeline.arena import plan, preset, record
from pipeline.arena.compete import compete
from pipeline.core import console
from pipeline.core.console import Parser, whole_number


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("python -m pipeline.arena", __doc__)
    add = parser.add_argument
    add("preset", nargs="?", default="offline", help="preset in pipeline/arena.yaml (%(default)s)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only entries whose title, such as 'tweets: LoRA r=1', contains TEXT; if repeated, all of them",
    )
    add("--jobs", type=whole_number(1, 64), default=2, metavar="N", help="trainings in parallel (%(default)s)")
    add("--write", default="records", metavar="NAME", help="name of the file for new records (%(default)s)")
    with parser.parsed(words, "stopped; finished trainings are kept") as options:
        folder = record.FOLDER / options.preset
        chosen = preset.load(options.preset)
        entries = plan.entries(options.preset, chosen, options.only)
        new = folder / f"{options.write}{record.ENDING}"
        compete(entries, record.read(folder), new, options.jobs)
        console.line(f"compare: python -m pipeline.compare {options.preset}")


if __name__ == "__main__":
    main()
