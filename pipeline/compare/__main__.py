"""`python -m pipeline.compare`: compare the methods of the arena on one page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.arena.preset import PATH, load
from pipeline.arena.record import FOLDER, read
from pipeline.compare.comparison import compare
from pipeline.compare.differences import SCOPES
from pipeline.compare.rows import Row
from pipeline.core import artifacts, console
from pipeline.core.console import Parser

OUTPUT = Path("reports", "compare")
PAGE = ("page.html", "page.css", "page.js")
COLUMNS = ("method", "score", "difference", "these tasks", "new tasks", "trained", "bytes", "status")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the methods of a preset, write the results, and print a summary."""
    parser = Parser(
        "python -m pipeline.compare",
        "Compare the methods of a benchmark: print scores and their differences from the baseline's, and write one "
        "HTML report with its figures as JSON.",
    )
    add = parser.add_argument
    add("preset", metavar="PRESET", help=f"preset in {PATH} that has records in {FOLDER}")
    add("--baseline", metavar="METHOD", help="method to compare with (default: the preset's baseline)")
    parent = "folder in which PRESET/ is written (default: %(default)s)"
    add("--output", type=Path, default=OUTPUT, metavar="FOLDER", help=parent)
    with parser.parse(arguments) as options:
        name = options.preset
        preset = load(name)
        records = read(FOLDER / name)
        baseline = options.baseline or preset.baseline
        comparison = compare(name, records, preset.model_copy(update={"baseline": baseline}))
        console.line(f"{FOLDER / name}: {len(records):,} records")
        folder = options.output / name
        write(folder / "comparison.json", with_a_line_each(comparison))
        write(folder / "index.html", page(comparison))
        show(comparison)
        console.line(f"written: {folder / 'index.html'}, and comparison.json in the same folder")


def write(path: Path, text: str) -> None:
    """Write a text to a file atomically."""
    with artifacts.replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_a_line_each(comparison: Mapping[str, Any]) -> str:
    """Encode a comparison as JSON with one line per result, so that diffs show which one changed."""
    fields = []
    for name, value in comparison.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            items = [f"  {json.dumps(item, ensure_ascii=False)}" for item in value]
            lines = ",\n".join(items)
            text = f"[\n{lines}\n ]"
        fields.append(f' "{name}": {text}')
    body = ",\n".join(fields)
    return f"{{\n{body}\n}}\n"


def page(comparison: dict[str, Any]) -> str:
    """Return a self-contained HTML page, whose script draws the comparison from its JSON."""
    # In JSON, no text can end or begin an HTML element with these escaped.
    data = json.dumps(comparison, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "&<>":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    text, style, script = map(_beside_this_file, PAGE)
    parts = {
        "title": f"{comparison['preset']}: comparison of methods",
        "style": style,
        "script": script,
        "data": data,
    }
    for place, part in parts.items():
        text = text.replace(f"{{{{ {place} }}}}", part)
    return text


def _beside_this_file(name: str) -> str:
    path = Path(__file__).with_name(name)
    return path.read_text(encoding="utf-8")


def show(comparison: dict[str, Any]) -> None:
    """Print the main average (or the last task), best methods first, and the notes; the page has everything else."""
    results = comparison["results"]
    main = results[-1]["task"]
    rows = [row for row in results if row["task"] == main]
    rows.sort(key=_best_first)
    title = f"{comparison['preset']}: {main}, percent"
    console.table(title, COLUMNS, map(_cells, rows))
    for note in comparison["notes"]:
        console.warn(note)


def _best_first(row: Row) -> tuple[bool, float, str]:
    score = row["score"]
    return score is None, -(score or 0.0), row["method"]


def _cells(row: Row) -> list[object]:
    score = None if row["score"] is None else f"{row['score']:.2f}"
    if row["score_high"] is not None:
        half = row["score_high"] - row["score"]
        score = f"{score} ± {half:.2f}"
    difference = None if row["difference"] is None else f"{row['difference']:+.2f}"
    reason = f": {row['reason']}" if row["reason"] else ""
    return [
        row["method"],
        score,
        difference,
        *(row[scope]["word"] for scope in SCOPES),
        row["trained"],
        row["bytes"],
        row["status"] + reason,
    ]


if __name__ == "__main__":
    main()
