"""The page: one HTML file that loads nothing else, and draws the comparison from its JSON by its own script."""

import json
from importlib.resources import files
from typing import Any

TITLE, STYLE, DATA, SCRIPT = "{{ title }}", "{{ style }}", "{{ data }}", "{{ script }}"  # places in the template


def page(comparison: dict[str, Any]) -> str:
    """Return the page of a comparison."""
    # In JSON, no text can end or begin an HTML element with these escaped.
    data = json.dumps(comparison, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "&<>":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    text = _file("page.html").replace(TITLE, f"{comparison['preset']}: comparison of methods")
    return text.replace(STYLE, _file("page.css")).replace(SCRIPT, _file("page.js")).replace(DATA, data)


def _file(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
