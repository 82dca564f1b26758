"""Tables and targets for many adapters in one batch."""

from collections.abc import Iterator, Sequence

from benchmarks.speed import many
from benchmarks.speed.report import Target
from pipeline.core import console

SHOWN, HELD = 256, 1024  # numbers of adapters in the targets
MOST_MEGABYTES = 16


def show(rows: Sequence[many.Row | many.Loading]) -> None:
    """Print a table per number of adapters, and one of loading times."""
    served = [row for row in rows if isinstance(row, many.Row)]
    columns = ["method", "ms a batch", "examples/s", "time over one's", "speed over PEFT's", "bytes an adapter"]
    for length, count in dict.fromkeys((row.tokens, row.adapters) for row in served):
        cells: list[list[console.Cell]] = [
            [
                r.method,
                1e3 * r.seconds,
                r.examples_a_second,
                r.slower_than_alone,
                r.faster_than_peer,
                "" if r.bytes_an_adapter is None else round(r.bytes_an_adapter),
            ]
            for r in served
            if (r.tokens, r.adapters) == (length, count)
        ]
        title = f"many: {many.MODEL}, {many.ROWS} rows of {length} tokens, {count:,} adapter{'s' * (count != 1)}"
        console.table(title, columns, cells)
    loaded: list[list[console.Cell]] = [
        [
            r.method,
            r.adapters,
            1e3 * r.first_seconds,
            1e3 * r.last_seconds,
            "" if r.file_seconds is None else 1e3 * r.file_seconds,
        ]
        for r in rows
        if isinstance(r, many.Loading)
    ]
    console.table("many: ms to load", ["method", "adapters", "a first one", "a last one", "all from one file"], loaded)


def targets(rows: Sequence[many.Row | many.Loading]) -> Iterator[Target]:
    """Yield the targets of a bank."""
    served = {row[:3]: row for row in rows if isinstance(row, many.Row)}
    for length in dict.fromkeys(tokens for tokens, _, _ in served):
        if shown := served.get((length, many.SMALLEST, SHOWN)):
            words = f"{many.SMALLEST}, {length} tokens, {SHOWN} adapters"
            most = served[length, many.MERGED, SHOWN].faster_than_peer
            speed = f"{words}, examples/s over those of PEFT's loop (the merged model alone: {most:.2f})"
            yield Target(speed, shown.faster_than_peer, 10, at_most=False)
            yield Target(f"{words}, time over one adapter's", shown.slower_than_alone, 1.3)
    held = next((row for (_, *rest), row in served.items() if rest == [many.SMALLEST, HELD]), None)
    if held and held.bytes_beyond_base is not None:
        yield Target(f"{many.SMALLEST}, {HELD} adapters, MB", held.bytes_beyond_base / 1e6, MOST_MEGABYTES)
