"""`python -m pipeline.compare`: compare the methods of the arena in tables, plots and one page."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.arena.preset import PATH, Preset
from pipeline.arena.record import ENDING, FOLDER, Record, read
from pipeline.compare.comparison import BASELINE, RESAMPLES
from pipeline.core import console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, exit_on_error, nearest
from pipeline.params.reading import load_table

PROGRAM = "python -m pipeline.compare"
OUTPUT = Path("reports", "compare")
EXTRA = ("altair", "vl_convert", "itables", "jinja2")  # packages of the extra `compare`


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog=PROGRAM,
        description=f"Write tables, plots and one page with the results of the arena into a folder in {OUTPUT}.",
    )
    add = top.add_argument
    add("preset", nargs="?", metavar="PRESET", help=f"a folder in {FOLDER}; optional if there is only one")
    add("--baseline", metavar="METHOD", help=f"method to compare others with (that of the preset, or {BASELINE})")
    add("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="folder in which to write PRESET/ (%(default)s)")
    resamples = "resamples of the bootstrap over test examples (%(default)s)"
    add("--resamples", type=whole_number(100, 1_000_000), default=RESAMPLES, metavar="N", help=resamples)
    add("--experiments", action="store_true", help="add a table of DVC experiments")
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
        # Heavy packages are imported after all checks that do not need them.
        from pipeline.compare import reports

        options.baseline = options.baseline or _baseline(preset)
        reports.write(options.output / preset, preset, records, options)


def _check_packages() -> None:
    if lacking := [name for name in EXTRA if find_spec(name) is None]:
        raise UserError(
            f"{PROGRAM}: needs {', '.join(lacking)}: pip install -c constraints.txt -e '.[pipeline,compare]'"
        )


def _baseline(name: str) -> str:
    """Return the baseline of a preset, or the default one if the preset is no longer in the file."""
    known = load_table(PATH, Preset) if PATH.is_file() else {}
    return known[name].baseline if name in known else BASELINE


def _records(preset: str | None) -> tuple[str, list[Record]]:
    known = sorted(path.parent.name for path in FOLDER.glob(f"*/*{ENDING}"))
    presets = list(dict.fromkeys(known))
    listed = f"presets: {', '.join(presets)}" if presets else f"{FOLDER} has no records; run python -m pipeline.arena"
    if preset is None and len(presets) != 1:
        raise UserError(f"{PROGRAM}: name a preset; {listed}" if presets else f"{PROGRAM}: {listed}")
    name = preset or presets[0]
    if name not in presets:
        raise UserError(f"{PROGRAM}: no records of {name!r}{nearest(name, presets)}; {listed}")
    records = list(read(FOLDER / name).values())
    if not records:
        raise UserError(f"{FOLDER / name}: no complete record; run python -m pipeline.arena {name}")
    console.line(f"{FOLDER / name}: {len(records):,} records")
    return name, records


if __name__ == "__main__":
    main()
