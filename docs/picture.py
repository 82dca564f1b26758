"""The README's pictures, as SVG: leads over what all would use, with their intervals, and sizes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

METHODS = {  # what the picture calls a method, and its name in the preset, from few trained parameters to many
    "head alone": "head",
    "LSR, 200 directions": "LSR warm 200, 2 passes",
    "LSR, shared frames": "LSR warm shared r=3, 2 passes",
    "LoRA r = 1": "LoRA r=1",
    "LoRA r = 8": "LoRA r=8",
    "LoRA r = 8, same start": "LoRA r=8 warm, all linear, 2 passes",
    "full fine-tuning": "full",
}
TENANTS = {  # forms of adapters, and what the picture calls them
    "own head": "own head",
    "one LoRA r = 8 for all, own heads": "one LoRA for all, own heads",
    "own cores, 192 numbers, in frames of all": "LSR: cores, common frames",
    "one for all, and an own LoRA r = 8 squeezed to 12 directions": "one for all + LSR squeezed",
    "own LoRA r = 8, squeezed to 12 directions": "LoRA r = 8, squeezed by LSR",
    "own LoRA r = 1": "own LoRA r = 1",
    "own LoRA r = 8, as trained": "own LoRA r = 8",
}
WIDTH, TOP, STEP, BOTTOM = 600, 66, 52, 58  # of the drawing
SHOWN = 415  # pixels: two pictures stand side by side
LEFT, RIGHT = 250, 520  # of the axis
INK, SOFT, LINE, BAND = "#1f2933", "#5b6673", "#c9ced6", "#e9edf2"
ORANGE, BLUE, GREY = "#d55e00", "#0072b2", "#595959"  # the first two from Okabe & Ito's color-blind safe set
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Axis(NamedTuple):
    """An axis of points, from -reach to reach."""

    reach: float
    step: int  # between ticks

    def x(self, points: float) -> float:
        """Return where a lead is drawn."""
        return LEFT + (RIGHT - LEFT) * (points + self.reach) / (2 * self.reach)


class Row(NamedTuple):
    """A row of a picture: a method with its lead in points over the one that others are compared with."""

    shown: str
    note: str  # below it
    score: float
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def of_methods(rows: Mapping[str, Mapping[str, Any]], margin: float) -> str:
    """Return the first picture, of a comparison's rows by method."""
    shown = [
        Row(name, f"{rows[method]['trained']:,}, {size(rows[method]['bytes'])}", *_found(rows[method]))
        for name, method in METHODS.items()
    ]
    return draw(shown, ("trained, size with head", "points over LoRA r = 1"), margin, Axis(2.5, 1))


def of_tenants(figures: Sequence[Mapping[str, Any]], margin: float) -> str:
    """Return the picture of adapters of tenants, from small files to large ones."""
    by_size = sorted((row for row in figures if row["form"] in TENANTS), key=lambda row: row["bytes"])
    shown = [Row(TENANTS[row["form"]], f"{size(row['bytes'])} a tenant", *_found(row)) for row in by_size]
    return draw(shown, ("a tenant's adapter, its size", "points over own LoRA"), margin, Axis(9.0, 3))


def _found(row: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(row[name] for name in Row._fields[2:])


def draw(rows: Sequence[Row], heads: tuple[str, str], margin: float, axis: Axis) -> str:
    """Return a picture of leads with their 95 % intervals."""
    height = TOP + STEP * len(rows) + BOTTOM
    bottom = height - BOTTOM
    low, high = axis.x(-margin), axis.x(margin)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SHOWN}" height="{height * SHOWN // WIDTH}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="{FONT}">',
        f"<title>{heads[1][0].upper()}{heads[1][1:]}, with 95 % intervals</title>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" fill="#ffffff" stroke="#ddd8cc"/>',
        f'<rect x="{low:.1f}" y="{TOP}" width="{high - low:.1f}" height="{bottom - TOP}" fill="{BAND}"/>',
        f'<path d="M{axis.x(0):.1f} {TOP}V{bottom}" stroke="{GREY}" stroke-dasharray="5 4"/>',
        _text(24, 32, heads[0], 17, SOFT, "start"),
        _text((LEFT + RIGHT) / 2, 32, heads[1], 17, SOFT),
        _text(WIDTH - 24, 32, "accuracy", 17, SOFT, "end"),
        _text((LEFT + RIGHT) / 2, bottom + 46, f"grey: within {margin:g} point; bars: 95 % intervals", 17, SOFT),
    ]
    ticks = (axis.step * number for number in (-2, -1, 0, 1, 2))
    parts += [_text(axis.x(tick), bottom + 21, f"{tick:+d}" if tick else "0", 17, SOFT) for tick in ticks]
    for number, row in enumerate(rows):
        parts += _row(TOP + STEP * (number + 0.5), row, axis)
    return "\n".join([*parts, "</svg>\n"])


def _row(y: float, row: Row, axis: Axis) -> Iterator[str]:
    color = ORANGE if "LSR" in row.shown else BLUE if "LoRA" in row.shown else GREY
    lead, low, high = (value or 0.0 for value in row[3:])
    yield _text(24, y - 3, row.shown, 19, INK, "start")
    yield _text(24, y + 17, row.note, 17, SOFT, "start")
    if high < -axis.reach:
        yield f'<path d="M{LEFT + 12} {y - 7}l-10 7l10 7z" fill="{color}"/>'
        yield _text(LEFT + 18, y + 6, f"{lead:.0f}", 17, SOFT, "start")
    else:
        ends = (axis.x(max(low, -axis.reach)), axis.x(min(high, axis.reach)))
        yield f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{color}" stroke-width="3" stroke-opacity="0.55"/>'
        yield f'<circle cx="{axis.x(lead):.1f}" cy="{y}" r="7" fill="{color}"/>'
    yield _text(WIDTH - 24, y + 6, f"{row.score:.1f}", 19, INK, "end")


def size(count: float) -> str:
    """Return bytes as a text."""
    return (
        f"{count / 1e6:,.0f} MB"
        if count >= 1e6
        else f"{count / 1e3:,.1f} kB"
        if count < 1e5
        else f"{count / 1e3:,.0f} kB"
    )


def _text(x: float, y: float, text: str, size: int, color: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{text}</text>'
