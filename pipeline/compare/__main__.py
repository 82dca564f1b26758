"""`python -m pipeline.compare`: compare the methods of the arena in tables, a picture and one page."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.arena.preset import PATH, Preset
from pipeline.arena.record import ENDING, FOLDER, Record, read
from pipeline.compare import tables
from pipeline.compare.comparison import RESAMPLES, compare
from pipeline.compare.page import page
from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, exit_on_error, nearest
from pipeline.params.reading import load_table

PROGRAM = "python -m pipeline.compare"
OUTPUT = Path("reports", "compare")


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog=PROGRAM,
        description=f"Write tables, a picture and one page with the results of the arena into a folder in {OUTPUT}.",
    )
    add = top.add_argument
    add("preset", nargs="?", metavar="PRESET", help=f"a folder in {FOLDER}; optional if there is only one")
    add("--baseline", metavar="METHOD", help="method to compare others with (that of the preset)")
    add("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="folder in which to write PRESET/ (%(default)s)")
    resamples = "resamples of the bootstrap over test examples (%(default)s)"
    add("--resamples", type=whole_number(100, 1_000_000), default=RESAMPLES, metavar="N", help=resamples)
    return top


def main(words: Sequence[str] | None = None) -> None:
    """Compare, and write the results.

    Raises:
        SystemExit: with exit code 2 after a user's mistake, 1 if a file cannot be written.
    """
    options = parser().parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        _check_packages()
        preset, records = _records(options.preset)
        baseline = options.baseline or _baseline(preset)
        write(options.output / preset, preset, records, baseline, options.resamples)


def write(folder: Path, preset: str, records: Sequence[Record], baseline: str, resamples: int) -> None:
    """Compare records, write all output, and print a summary.

    Raises:
        UserError: if there is no such baseline.
        OSError: if a file cannot be written.
    """
    from pipeline.compare import pictures  # with matplotlib, which only an extra installs

    comparison = compare(preset, records, baseline, resamples)
    content = tables.everything(comparison)
    for name, text in {
        "comparison.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "comparison.md": tables.markdown(comparison),
        "index.html": page(content),
    }.items():
        with artifacts.replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    pictures.draw(folder / "pareto-trained.png", comparison)
    tables.show(comparison)
    console.line(f"written: {folder / 'index.html'}, with the tables and a picture beside it")


def _check_packages() -> None:
    if find_spec("matplotlib") is None:
        raise UserError(f"{PROGRAM}: needs matplotlib: pip install -c constraints.txt -e '.[pipeline,compare]'")


def _baseline(name: str) -> str:
    presets = load_table(PATH, Preset)
    if name not in presets:
        raise UserError(f"{PROGRAM}: {PATH} has no preset {name!r} any more, so name the --baseline")
    return presets[name].baseline


def _records(preset: str | None) -> tuple[str, list[Record]]:
    presets = sorted({path.parent.name for path in FOLDER.glob(f"*/*{ENDING}")})
    if not presets:
        raise UserError(f"{PROGRAM}: {FOLDER} has no records; run python -m pipeline.arena")
    if preset is None and len(presets) > 1:
        raise UserError(f"{PROGRAM}: name a preset: {', '.join(presets)}")
    name = preset or presets[0]
    if name not in presets:
        raise UserError(f"{PROGRAM}: no records of {name!r}{nearest(name, presets)}; presets: {', '.join(presets)}")
    records = list(read(FOLDER / name).values())
    if not records:
        raise UserError(f"{FOLDER / name}: no complete record; run python -m pipeline.arena {name}")
    console.line(f"{FOLDER / name}: {len(records):,} records")
    return name, records


if __name__ == "__main__":
    main()
