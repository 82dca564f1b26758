"""The README's picture of methods, as SVG: sizes, and differences from LoRA r = 1 with their intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]  # a method on a task or an average, as reports/compare has it
METHODS = {  # what the picture calls a method, and its name in the preset by trained parameters, then none
    "LSR, 200 directions": "LSR warm 200, 2 passes",
    "LSR, shared A and B": "LSR warm shared r=3, 2 passes",
    "LoRA r = 1": "LoRA r=1",
    "LoRA r = 8": "LoRA r=8",
    "LoRA r = 8, warm start": "LoRA r=8 warm, all linear, 2 passes",
    "full fine-tuning": "full",
    "no adapter": "regression, mean",  # a logistic regression on the frozen encoder's embeddings
}
WIDTH, TOP, STEP, BOTTOM = 600, 66, 52, 58  # of the drawing
SHOWN = 415  # pixels: two pictures stand side by side
LEFT, RIGHT = 250, 520  # of the axis
REACH = 2.5  # points to each side of it
INK, SOFT, BAND = "#1f2933", "#5b6673", "#e9edf2"
ORANGE, BLUE, GREY = "#d55e00", "#0072b2", "#595959"  # the first two from Okabe & Ito's color-blind safe set
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def drawn(rows: Mapping[str, Result], margin: float) -> str:
    """Return the picture, of a comparison's rows by method; those within the margin, in points, are equivalent."""
    height = TOP + STEP * len(METHODS) + BOTTOM
    bottom = height - BOTTOM
    middle = (LEFT + RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SHOWN}" height="{height * SHOWN // WIDTH}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="{FONT}">',
        "<title>Difference from LoRA r = 1 in points, with 95 % intervals</title>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" fill="#ffffff" stroke="#ddd8cc"/>',
        f'<rect x="{_x(-margin):.1f}" y="{TOP}" width="{_x(margin) - _x(-margin):.1f}" height="{bottom - TOP}" '
        f'fill="{BAND}"/>',
        f'<path d="M{_x(0):.1f} {TOP}V{bottom}" stroke="{GREY}" stroke-dasharray="5 4"/>',
        _text(24, 32, "trained, size with head", 17, SOFT, "start"),
        _text(middle, 32, "points over LoRA r = 1", 17, SOFT),
        _text(WIDTH - 24, 32, "accuracy", 17, SOFT, "end"),
        _text(middle, bottom + 46, f"grey: within {margin:g} point; bars: 95 % intervals", 17, SOFT),
    ]
    parts += [_text(_x(tick), bottom + 21, f"{tick:+d}" if tick else "0", 17, SOFT) for tick in (-2, -1, 0, 1, 2)]
    for number, (shown, method) in enumerate(METHODS.items()):
        parts += _row(TOP + STEP * (number + 0.5), shown, rows[method])
    return "\n".join([*parts, "</svg>\n"])


def _x(points: float) -> float:
    """Return where a difference is drawn."""
    return LEFT + (RIGHT - LEFT) * (points + REACH) / (2 * REACH)


def _row(y: float, shown: str, row: Result) -> Iterator[str]:
    color = ORANGE if "LSR" in shown else BLUE if "LoRA" in shown else GREY
    difference, low, high = (number or 0.0 for number in (row["difference"], row["new"]["low"], row["new"]["high"]))
    yield _text(24, y - 3, shown, 19, INK, "start")
    yield _text(24, y + 17, f"{row['trained']:,}, {size(row['bytes'])}", 17, SOFT, "start")
    if difference < -REACH:
        yield f'<path d="M{LEFT + 12} {y - 7}l-10 7l10 7z" fill="{color}"/>'
        yield _text(LEFT + 18, y + 6, f"{difference:.1f}", 17, SOFT, "start")
    else:
        ends = (_x(max(low, -REACH)), _x(min(high, REACH)))
        yield f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{color}" stroke-width="3" stroke-opacity="0.55"/>'
        yield f'<circle cx="{_x(difference):.1f}" cy="{y}" r="7" fill="{color}"/>'
    yield _text(WIDTH - 24, y + 6, f"{row['score']:.1f}", 19, INK, "end")


def size(count: float) -> str:
    """Return bytes as a text."""
    if count >= 1e6:
        return f"{count / 1e6:,.0f} MB"
    return f"{count / 1e3:,.1f} kB" if count < 1e5 else f"{count / 1e3:,.0f} kB"


def _text(x: float, y: float, text: str, size: int, color: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{text}</text>'
