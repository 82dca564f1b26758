"""Draw the first picture of the README: `python docs/picture.py` writes docs/lsr.svg. It needs nothing but Python.

The sizes are those of the example of Li & Sarwate, arXiv 2502.13568; the shapes are not to scale. The picture brings
its own light background, because a page may be dark.
"""

from pathlib import Path
from xml.sax.saxutils import escape

OUT_SHAPE = IN_SHAPE = (32, 24)
RANK_SHAPE = (2, 2)
SEPARATION_RANK = 16
LORA_RANKS = (4, 8)  # the rank of this update, and LoRA's usual one

D_OUT, D_IN, RANK = (first * second for first, second in (OUT_SHAPE, IN_SHAPE, RANK_SHAPE))
PAIRS = list(zip(OUT_SHAPE, RANK_SHAPE, IN_SHAPE, strict=True))  # of the first factors, of the second ones
PARAMETERS = SEPARATION_RANK * sum(n_out * r + r * n_in for n_out, r, n_in in PAIRS)
LORA_PARAMETERS = [rank * (D_OUT + D_IN) for rank in LORA_RANKS]

WIDTH, HEIGHT = 900, 572
INK, MUTED, PAPER, LINE, WHITE = "#1f2933", "#5b6673", "#faf8f3", "#ddd8cc", "#ffffff"
GRAY, ORANGE, BLUE = "#ccd3dc", "#f0b27a", "#8fc1e3"
DEEP_ORANGE, DEEP_BLUE = "#b3500a", "#0b63a5"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STEP = 3  # drawn length of one row or column of a small factor
THIN = 16  # drawn thickness of a small factor


def draw() -> str:
    """Return the picture as SVG text."""
    title = f"ΔW = c (Σ B1 ⊗ B2) (Σ A1 ⊗ A2): {comparison()}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="{FONT}">',
        f"<title>{escape(title)}</title>",
        _box(1, 1, WIDTH - 2, HEIGHT - 2, PAPER, LINE, radius=16),
        *update(middle=146),
        *sum_of_b(left=36, top=282),
        *sum_of_a(left=456, top=282),
        *caption(baseline=520),
        "</svg>\n",
    ]
    return "\n".join(parts)


def comparison() -> str:
    """What LSR and LoRA store, in words."""
    same, usual = (f"{count:,} at r = {rank}" for rank, count in zip(LORA_RANKS, LORA_PARAMETERS, strict=True))
    return f"{PARAMETERS:,} parameters at rank {RANK}; LoRA has {same} and {usual}"


def update(middle: float) -> list[str]:
    """ΔW = c · B · A, centered on the height `middle`."""
    side, thin = 168, 28
    above, below = middle - side / 2 - 10, middle + side / 2 + 20
    return [
        *_matrix(60, middle - side / 2, side, side, GRAY),
        _text(144, middle + 8, "ΔW", size=24, bold=True),
        _text(144, below, f"{D_OUT} × {D_IN}", color=MUTED),
        _text(262, middle + 8, "=", size=24),
        _text(300, middle + 8, "c", size=24),
        _text(328, middle + 8, "·", size=24),
        *_matrix(356, middle - side / 2, thin, side, ORANGE, columns=RANK),
        _text(370, above, "B", size=19, color=DEEP_ORANGE, bold=True),
        _text(370, below, f"{D_OUT} × {RANK}", color=MUTED),
        _text(412, middle + 8, "·", size=24),
        *_matrix(440, middle - thin / 2, side, thin, BLUE, rows=RANK),
        _text(524, middle - thin / 2 - 10, "A", size=19, color=DEEP_BLUE, bold=True),
        _text(524, middle + thin / 2 + 20, f"{RANK} × {D_IN}", color=MUTED),
        _text(662, middle - 24, f"rank of ΔW ≤ r₁ · r₂ = {RANK}", anchor="start"),
        _text(662, middle + 4, f"scale c = α / {RANK}", anchor="start"),
        _text(662, middle + 32, "initially B1 = 0, so ΔW = 0", anchor="start"),
    ]


def sum_of_b(left: float, top: float) -> list[str]:
    """B as a sum of Kronecker products: tall factors, term beside term."""
    parts = _panel(left, top, "B", "B1", "B2", DEEP_ORANGE)
    middle = top + 114
    for x, index in ((left + 68, 1), (left + 186, 2), (left + 340, SEPARATION_RANK)):
        for center, name, n_out, r in (
            (x - 30, "B1", OUT_SHAPE[0], RANK_SHAPE[0]),
            (x + 30, "B2", OUT_SHAPE[1], RANK_SHAPE[1]),
        ):
            height = STEP * n_out
            parts += _matrix(center - THIN / 2, middle - height / 2, THIN, height, ORANGE, columns=r)
            parts.append(_text(center, middle - height / 2 - 7, name, sub=index))
            if index == 1:
                parts.append(
                    _text(center, middle + STEP * OUT_SHAPE[0] / 2 + 18, f"{n_out} × {r}", size=14, color=MUTED)
                )
        parts.append(_text(x, middle + 7, "⊗", size=20))
    signs = ((left + 127, "+"), (left + 240, "+"), (left + 263, "⋯"), (left + 286, "+"))
    return [*parts, *(_text(x, middle + 7, sign, size=20) for x, sign in signs)]


def sum_of_a(left: float, top: float) -> list[str]:
    """A as a sum of Kronecker products: flat factors, term under term."""
    parts = _panel(left, top, "A", "A1", "A2", DEEP_BLUE)
    widths = [STEP * n_in for n_in in IN_SHAPE]
    lefts = (left + 110, left + 110 + widths[0] + 48)
    for middle, index in ((top + 80, 1), (top + 114, 2), (top + 168, SEPARATION_RANK)):
        for x, width, r in zip(lefts, widths, RANK_SHAPE, strict=True):
            parts += _matrix(x, middle - THIN / 2, width, THIN, BLUE, rows=r)
        parts += [
            _text(lefts[0] - 22, middle + 6, "A1", sub=index),
            _text(lefts[1] - 24, middle + 7, "⊗", size=20),
            _text(lefts[1] + widths[1] + 24, middle + 6, "A2", sub=index),
        ]
        if index > 1:
            parts.append(_text(left + 42, middle + 7, "+", size=20))
    for x, width, r, n_in in zip(lefts, widths, RANK_SHAPE, IN_SHAPE, strict=True):
        parts.append(_text(x + width / 2, top + 65, f"{r} × {n_in}", size=14, color=MUTED))
    return [*parts, _text(left + 42, top + 147, "⋮", size=20)]


def caption(baseline: float) -> list[str]:
    """The saving in parameters."""
    sizes = " + ".join(f"{n_out}·{r} + {r}·{n_in}" for n_out, r, n_in in PAIRS)
    count = f"{SEPARATION_RANK} · ({sizes}) = {PARAMETERS:,} for one layer of {D_OUT} × {D_IN}; shapes not to scale"
    return [
        _text(
            WIDTH / 2,
            baseline,
            comparison(),
            size=18,
            bold=True,
        ),
        _text(WIDTH / 2, baseline + 28, count, color=MUTED),
    ]


def _panel(left: float, top: float, whole: str, first: str, second: str, color: str) -> list[str]:
    return [
        _box(left, top, 408, 196, WHITE, LINE, radius=10),
        _text(
            left + 18, top + 28, f"{whole} = Σₖ {first}ₖ ⊗ {second}ₖ", size=17, color=color, bold=True, anchor="start"
        ),
        _text(left + 390, top + 28, f"s = {SEPARATION_RANK} terms", color=MUTED, anchor="end"),
    ]


def _matrix(x: float, y: float, width: float, height: float, color: str, rows: int = 1, columns: int = 1) -> list[str]:
    """A filled box, cut into rows or columns by thin lines."""
    cuts = [(x + width * k / columns, y, 0, height) for k in range(1, columns)]
    cuts += [(x, y + height * k / rows, width, 0) for k in range(1, rows)]
    lines = [f'<path d="M{a:g} {b:g}l{right:g} {down:g}" stroke="{WHITE}"/>' for a, b, right, down in cuts]
    return [_box(x, y, width, height, color, color), *lines]


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float = 2) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"/>'


def _text(
    x: float,
    y: float,
    words: str,
    size: int = 15,
    color: str = INK,
    bold: bool = False,
    anchor: str = "middle",
    sub: int | None = None,
) -> str:
    index = "" if sub is None else f'<tspan dy="4" font-size="{size * 0.7:g}">{sub}</tspan>'
    look = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"' + (' font-weight="600"' if bold else "")
    return f'<text x="{x:g}" y="{y:g}" {look}>{escape(words)}{index}</text>'


if __name__ == "__main__":
    Path(__file__).with_name("lsr.svg").write_text(draw(), encoding="utf-8")
