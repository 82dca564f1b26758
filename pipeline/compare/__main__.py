"""`python -m pipeline.compare`: compare the methods of the arena on one page."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.arena.preset import PATH, load
from pipeline.arena.record import FOLDER, read
from pipeline.compare import tables
from pipeline.compare.comparison import compare
from pipeline.compare.page import page
from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error

PROGRAM = "python -m pipeline.compare"
OUTPUT = Path("reports", "compare")


def main(words: Sequence[str] | None = None) -> None:
    """Compare the methods of a preset, and write the results.

    Raises:
        SystemExit: with exit code 2 after a user's mistake, 1 if a file cannot be written.
    """
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("preset", metavar="PRESET", help=f"a preset of {PATH} that has records in {FOLDER}")
    add("--baseline", metavar="METHOD", help="method to compare others with (that of the preset)")
    add("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="folder in which to write PRESET/ (%(default)s)")
    options = parser.parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        write(options.output / options.preset, options.preset, options.baseline)


def write(folder: Path, name: str, baseline: str | None) -> None:
    """Compare the records of a preset, write all output, and print a summary.

    Raises:
        UserError: if there is no such preset or baseline, or there are no records.
        OSError: if a file cannot be written.
    """
    preset, records = load(name), list(read(FOLDER / name).values())
    if not records:
        raise UserError(f"{FOLDER / name}: no records; run python -m pipeline.arena {name}")
    comparison = compare(name, records, preset.model_copy(update={"baseline": baseline or preset.baseline}))
    console.line(f"{FOLDER / name}: {len(records):,} records")
    content = tables.everything(comparison)
    for file, text in {
        "comparison.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "index.html": page(content),
    }.items():
        with artifacts.replacing(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    tables.show(comparison)
    console.line(f"written: {folder / 'index.html'}, with its JSON beside it")


if __name__ == "__main__":
    main()
