"""The README's first picture, as SVG: the lead of six methods over LoRA r = 1 with its interval, and their sizes."""

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = {  # what the picture calls a method, and its name in the preset, from few trained parameters to many
    "head alone": "head",
    "LSR, 200 directions": "LSR warm 200, 2 passes",
    "LSR, shared frames": "LSR warm shared r=3, 2 passes",
    "LoRA r = 1": "LoRA r=1",
    "LoRA r = 8": "LoRA r=8",
    "full fine-tuning": "full",
}
WIDTH, TOP, ROW, BOTTOM = 600, 66, 52, 58  # of the drawing
SHOWN = 415  # pixels: two pictures stand side by side
LEFT, RIGHT = 250, 520  # of the axis
LOWEST, HIGHEST = -2.5, 2.5  # percentage points
INK, SOFT, LINE, BAND = "#1f2933", "#5b6673", "#c9ced6", "#e9edf2"
ORANGE, BLUE, GREY = "#d55e00", "#0072b2", "#595959"  # the first two from Okabe & Ito's color-blind safe set
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def draw(rows: Mapping[str, Mapping[str, Any]], margin: float) -> str:
    """Return the picture of the methods of a comparison on one average, of which each row has a lead in points."""
    height = TOP + ROW * len(METHODS) + BOTTOM
    bottom = height - BOTTOM
    low, high = _x(-margin), _x(margin)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SHOWN}" height="{height * SHOWN // WIDTH}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="{FONT}">',
        "<title>Lead over LoRA r = 1 with its 95 % interval, mean of four tasks</title>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" fill="#ffffff" stroke="#ddd8cc"/>',
        f'<rect x="{low:.1f}" y="{TOP}" width="{high - low:.1f}" height="{bottom - TOP}" fill="{BAND}"/>',
        f'<path d="M{_x(0):.1f} {TOP}V{bottom}" stroke="{GREY}" stroke-dasharray="5 4"/>',
        _text(24, 32, "trained, size with head", 17, SOFT, "start"),
        _text((LEFT + RIGHT) / 2, 32, "points over LoRA r = 1", 17, SOFT),
        _text(WIDTH - 24, 32, "accuracy", 17, SOFT, "end"),
        _text((LEFT + RIGHT) / 2, bottom + 46, f"grey: within {margin:g} point; bars: 95 % intervals", 17, SOFT),
    ]
    parts += [_text(_x(tick), bottom + 21, f"{tick:+d}" if tick else "0", 17, SOFT) for tick in (-2, -1, 0, 1, 2)]
    for number, (shown, method) in enumerate(METHODS.items()):
        parts += _row(TOP + ROW * (number + 0.5), shown, rows[method])
    return "\n".join([*parts, "</svg>\n"])


def _row(y: float, shown: str, row: Mapping[str, Any]) -> Iterator[str]:
    color = ORANGE if shown.startswith("LSR") else BLUE if shown.startswith("LoRA") else GREY
    lead, low, high = (row[name] or 0.0 for name in ("difference", "difference_low", "difference_high"))
    yield _text(24, y - 3, shown, 19, INK, "start")
    yield _text(24, y + 17, f"{row['trained']:,}, {_size(row['bytes'])}", 17, SOFT, "start")
    if high < LOWEST:
        yield f'<path d="M{LEFT + 12} {y - 7}l-10 7l10 7z" fill="{color}"/>'
        yield _text(LEFT + 18, y + 6, f"{lead:.0f}", 17, SOFT, "start")
    else:
        ends = (_x(max(low, LOWEST)), _x(min(high, HIGHEST)))
        yield f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{color}" stroke-width="3" stroke-opacity="0.55"/>'
        yield f'<circle cx="{_x(lead):.1f}" cy="{y}" r="7" fill="{color}"/>'
    yield _text(WIDTH - 24, y + 6, f"{row['score']:.1f}", 19, INK, "end")


def _x(points: float) -> float:
    return LEFT + (RIGHT - LEFT) * (points - LOWEST) / (HIGHEST - LOWEST)


def _size(count: int) -> str:
    return (
        f"{count / 1e6:,.0f} MB"
        if count >= 1e6
        else f"{count / 1e3:,.1f} kB"
        if count < 1e5
        else f"{count / 1e3:,.0f} kB"
    )


def _text(x: float, y: float, text: str, size: int, color: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{text}</text>'
