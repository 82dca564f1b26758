"""The results as Markdown and JSON, including the targets."""

import json
from collections.abc import Iterable, Iterator, Sequence
from math import isnan
from pathlib import Path
from textwrap import wrap

from benchmarks.family import picture, sizes
from benchmarks.family.checks import Check, checks
from benchmarks.family.experiment import GRID, PROTOCOLS, SEEDS, SHORT, STEP
from benchmarks.family.methods import scales
from benchmarks.family.summary import PEERS, Row
from pipeline.core import artifacts, console

DETAILS = (
    *("method", "layers", "trained", "stored", "learning rate", "test score"),
    *(f"over {peer}" for peer in PEERS),
)
CHECKED = ("target", "data", "LSR", "rival", "difference", "holds")


def write(table: Sequence[Row], folder: Path) -> None:
    """Write table.md, table.json, table.png and size.png into a folder; print the overview and the checks."""
    checked = list(checks(table))
    with artifacts.replacing(folder / "table.json") as path:
        found = {"rows": [row.flat() for row in table], "checks": [check.flat() for check in checked]}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with artifacts.replacing(folder / "table.md") as path:
        path.write_text("".join(f"{line}\n" for line in markdown(table, checked)), encoding="utf-8")
    picture.draw(folder / "table.png", table)
    sizes.draw(folder / "size.png", table)
    for protocol, rows in _by_protocol(table).items():
        console.table(protocol, _columns(rows), overview(rows, "trained"))
    console.table("targets", CHECKED, map(_checked, checked))


def markdown(table: Sequence[Row], checked: Sequence[Check]) -> Iterator[str]:
    """Yield the lines: for each protocol two overviews, the targets and one table per data set."""
    yield from _caption()
    for protocol, rows in _by_protocol(table).items():
        for counted, words in (("trained", "trained parameters"), ("size", "bytes of stored parameters")):
            yield f"\n## {protocol}, by {words}\n"
            yield from markdown_table(_columns(rows), overview(rows, counted))
        yield f"\n## {protocol}: targets\n"
        yield from markdown_table(CHECKED, [_checked(check) for check in checked if check.protocol == protocol])
        yield ""
        yield from _held([check for check in checked if check.protocol == protocol])
        for data in dict.fromkeys(row.data for row in rows):
            yield f"\n## {protocol}: {data}\n"
            yield from markdown_table(DETAILS, [_details(row) for row in rows if row.data == data])


def overview(rows: Sequence[Row], counted: str) -> Iterator[Sequence[str]]:
    """Yield for each method, fewest parameters or bytes first, its test score on each data set."""
    first = {row.method: row for row in reversed(rows)}
    for method in sorted(first, key=lambda name: (getattr(first[name], counted), list(first).index(name))):
        scores = {row.data: _short(row) for row in rows if row.method == method}
        row = first[method]
        yield (
            method,
            f"{row.trained:,}",
            _stored(row),
            f"{row.size / 1000:,.1f}",
            *(scores.get(data, "") for data in _data(rows)),
        )


def _caption() -> Iterator[str]:
    short, long = PROTOCOLS["short"].overrides, PROTOCOLS["long"].overrides
    rates = ", ".join(f"{rate:g}" for rate in GRID)
    points = (
        f"Mean test score over {len(SEEDS)} seeds with a 95 % interval (Student's t): accuracy, and Pearson's "
        "correlation on movie-ratings. Adapters are in the query and value layers of MiniLM unless said.",
        f"short: {SHORT.train:,} texts of at most {SHORT.longest} tokens, of pairs more, in one epoch of batches "
        f"of {short['train.batch_size']}, {short['train.precision']}. long: all of train in "
        f"{long['train.epochs']} epochs of batches of {long['train.batch_size']}, {long['train.precision']}.",
        f"The learning rate is the one of {rates} with the best validation score of the trained model, for each method "
        f"and data set ({scales()}). Where the best is at an edge, one more rate is tried, a factor of {STEP:g} "
        "beyond; (edge): that one is the best. LoRA r=1 in a few layers tries all rates in each of several runs of "
        "layers, and so has more tries.",
        "The first seed tunes, and its run is also one of those that are reported.",
        "▲ and ▼: the 95 % interval of the difference to LoRA r=1 with the same seeds excludes 0, as it does by chance "
        "alone once in twenty.",
        "Frames of directions and cores are made of the update of a short training on the same texts, once over them: "
        "up to an epoch more than others see, so LoRA has rows with two epochs. warm: the adapter and the head begin "
        "with what this short training learned, as far as the adapter's form can hold it.",
        "kB: 1,000 bytes of the stored parameters, of four bytes each, as PEFT writes them; a sign is one bit. The "
        "header of the file, with the names of its tensors, comes on top.",
        "Pooled frames are made of the updates on all data sets: of related texts, which a method on one data set has "
        "not seen. They are stored once for many adapters (+). Left out: without the data sets of the same texts. Of "
        "another data set: at the rate that was tuned for the method's own frames.",
    )
    for point in points:
        yield from wrap(point, 119, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    return "method", "trained", "stored", "kB", *_data(rows)


def _data(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.data for row in rows))


def _short(row: Row) -> str:
    half = "" if isnan(row.test.low) else f" ± {row.test.mean - row.test.low:.3f}"
    mark = " ▲" if row.over_first.low > 0 else " ▼" if row.over_first.high < 0 else ""
    return f"{row.test.mean:.3f}{half}{mark}"


def _stored(row: Row) -> str:
    return f"{row.stored:,} + {row.pooled:,}" if row.pooled else f"{row.stored:,}"


def _details(row: Row) -> Sequence[str]:
    rate = f"{row.rate:g}{' (edge)' if row.at_edge else ''}"
    estimates = row.test.words(".3f"), row.over_first.words("+.3f"), row.over_second.words("+.3f")
    return row.method, row.layers, f"{row.trained:,}", _stored(row), rate, *estimates


def _checked(check: Check) -> Sequence[str]:
    found = check.difference.words("+.3f")
    return check.target, check.data, check.ours, check.rival, found, "true" if check.holds else "false"


def _held(checked: Sequence[Check]) -> Iterator[str]:
    for target in dict.fromkeys(check.target for check in checked):
        held = [check.holds for check in checked if check.target == target]
        yield f"- {target}: on {sum(held)} of {len(held)}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"


def _by_protocol(table: Sequence[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row.protocol for row in table)
    return {name: [row for row in table if row.protocol == name] for name in names}
